"""LoRA recovery (Hu et al. 2022, with peft): trains low-rank factors beside frozen weights, then merges them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ..base.errors import TrainingError
from ..base.files import atomic_file
from ..base.rules import above, at_least, check_fields
from ..structure.cost import skeleton

ADAPTER = "recovery"


@dataclass(frozen=True)
class LoraConfig:
    """Options of recovery by low-rank factors.

    Attributes:
        rank: rank of the factors; 0 trains the weights themselves.
        alpha: the update is alpha / rank times the product of the factors; by default the rank.
        targets: glob patterns over the names of linear layers and convolutions that get factors.
        keep: also write the factors themselves, as a LoRA of the pruned model: recovery/lora.safetensors.
    """

    rank: Annotated[int, at_least(0)] = 0
    alpha: Annotated[float, above(0)] | None = None
    targets: tuple[str, ...] = ("*",)
    keep: bool = False

    def __post_init__(self) -> None:
        check_fields("lora", self)


def check_lora(config: LoraConfig, model: nn.Module, frozen: Collection[str] = ()) -> list[str]:
    """The layers of `model` that get factors: not those whose weights are among the `frozen` parameters.

    Raises:
        TrainingError: peft is not installed, no layer matches, or all that match are frozen.
    """
    if find_spec("peft") is None:
        raise TrainingError("LoRA recovery needs peft; pip install 'secateur[lora]'")
    layers = [name for name, module in model.named_modules() if _takes_factors(module)]
    found = [name for name in layers if any(fnmatchcase(name, pattern) for pattern in config.targets)]
    if not found:
        raise TrainingError(f"lora targets {', '.join(config.targets)} match no layer; there is {layers[0]}")
    trained = [name for name in found if f"{name}.weight" not in frozen]
    if not trained:
        raise TrainingError(f"freeze leaves none of the layers that lora targets {', '.join(config.targets)} match")
    return trained


def _takes_factors(module: nn.Module) -> bool:
    """Whether peft can add factors to a layer and merge them: not to convolutions in groups."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def add_lora(model: nn.Module, config: LoraConfig, frozen: Collection[str] = ()) -> None:
    """Freeze `model` and add trainable factors to the layers that `config` names."""
    import peft

    names = check_lora(config, model, frozen)
    model.requires_grad_(False)
    exactly = "|".join(map(re.escape, names))  # peft takes the names of a list for endings
    adapter = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha or config.rank, target_modules=exactly)
    peft.inject_adapter_in_model(adapter, model, ADAPTER)


def merge_lora(model: nn.Module) -> None:
    """Add the products of the factors to the weights, and remove the factors."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in [module for module in model.modules() if isinstance(module, BaseTunerLayer)]:
        layer.merge()
    _unwrap(model)


def without_factors(model: nn.Module) -> nn.Module:
    """A copy of `model` without memory and without factors, whose layers are those that families know; or `model`
    itself, if it has none."""
    if "peft_config" not in vars(model):
        return model
    hollow = skeleton(model)
    _unwrap(hollow)
    return hollow


def _unwrap(model: nn.Module) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        holder, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(holder), attribute, layer.get_base_layer())
    vars(model).pop("peft_config", None)


def save_lora(model: nn.Module, path: Path) -> None:
    """Write the factors under the names of diffusers' LoRA files, for a pipeline with the pruned model."""
    from peft.utils import get_peft_model_state_dict

    factors: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    prefix = "unet" if "UNet" in type(model).__name__ else "transformer"
    named: dict[str, Any] = {f"{prefix}.{name}": value.detach().cpu().contiguous() for name, value in factors.items()}
    with atomic_file(path) as temporary:
        save_file(named, temporary)
