"""Classes of pruned models, with which diffusers' own loaders and savers handle them.

A narrower U-Net is of the class `secateur.PrunedUNet2DModel`, which its config and the index of its pipeline name, so
that diffusers finds it here. Its dense class would build it too wide; the config refuses that in one sentence. A
transformer that only lost blocks matches its config, so it keeps its class name, and plain diffusers loads it. Both
write their manifest beside the config, also when diffusers saves them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ..base.errors import ModelError
from ..base.files import write_json
from ..base.lookup import ADDRESS
from ..models.families.autoencoder_kl import AutoencoderKLDecoder
from ..models.registry import architecture_named, is_known

PREFIX = "Pruned"
# Dense classes of diffusers refuse an unknown quantization before they read the weights.
REFUSAL = {
    "quant_method": "pruned: load this model with secateur.from_pretrained, or with AutoModel after `import secateur`"
}
# Options of diffusers' loaders that this one does not support; other options have no effect here.
NOT_TAKEN = ("quantization_config", "parallel_config")

_CLASSES: dict[tuple[type[Any], bool], type[Any]] = {}


class Pruned:
    """Methods of a pruned model that differ from its dense class. See `for_diffusers`."""

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **options: Any) -> None:
        """Write `config.json` with a pointer to the manifest, and the manifest as `pruning.json`."""
        from .manifest import MANIFEST, MANIFEST_KEY, POINTER_KEY, manifest_of

        super().save_config(save_directory, push_to_hub, **options)  # type: ignore[misc]
        manifest = manifest_of(self)  # type: ignore[arg-type]
        assert manifest is not None
        path = Path(save_directory, "config.json")
        config = json.loads(path.read_text())
        del config[MANIFEST_KEY]
        if type(self).__module__ == "secateur":
            config = {"quantization_config": REFUSAL} | config | {"_class_name": f"{ADDRESS}{type(self).__name__}"}
        write_json(path, config | {POINTER_KEY: {"file": MANIFEST, "sha256": manifest.digest}})
        write_json(Path(save_directory, MANIFEST), manifest.to_json())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> nn.Module:
        """As `secateur.from_pretrained`, with the options that diffusers' loaders pass.

        Raises:
            ModelError: as `secateur.from_pretrained`; or an option that is not supported.
        """
        from .checkpoint import from_pretrained

        if asked := [name for name in NOT_TAKEN if options.get(name) is not None]:
            raise ModelError(f"a {cls.__name__} cannot be loaded with {asked[0]}; load it without, and change it then")
        taken = ("subfolder", "variant", "revision", "token", "cache_dir")
        given = {name: options[name] for name in taken if options.get(name) is not None}
        return from_pretrained(
            pretrained_model_name_or_path,
            torch_dtype=options.get("torch_dtype", options.get("dtype")),
            device=_one_device(options.get("device_map")),
            **given,
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles refer to the dense class, since a pruned class is created here and cannot be imported."""
        return _blank, (dense_class(self), type(self).__name__.startswith(PREFIX)), vars(self)  # type: ignore[arg-type]


def dense_class(model: nn.Module) -> type[Any]:
    """The class of the dense model, without `Pruned` and shards; for a decoder, that of the whole autoencoder."""
    classes = [each for each in type(saved_module(model)).__mro__ if not issubclass(each, FSDPModule)]
    return classes[classes.index(Pruned) + 1 if Pruned in classes else 0]


def class_name(model: nn.Module) -> str:
    """The class name of `model` for messages: that of the dense class."""
    return type(model).__name__.removeprefix(PREFIX)


def dense_name(name: str) -> str:
    """The dense class's name for a class name in a config."""
    return name.removeprefix(ADDRESS).removeprefix(PREFIX)


def saved_module(model: nn.Module) -> nn.Module:
    """The module to save for `model`: for a decoder, the whole autoencoder."""
    return model.autoencoder if isinstance(model, AutoencoderKLDecoder) else model


def give_class(model: nn.Module, loads_in_diffusers: bool) -> None:
    """Change the class of a diffusers model to the pruned class."""
    saved = saved_module(model)
    architecture = dense_class(saved)
    if issubclass(architecture, diffusers.ModelMixin) and "secateur" not in architecture.__module__:
        saved.__class__ = _class_of(architecture, own_name=not loads_in_diffusers)


def for_diffusers(name: str) -> type[Any]:
    """Names that diffusers looks up in this package: classes such as `PrunedUNet2DModel`, and `ModelMixin`, their kind.

    Raises:
        AttributeError: it is neither.
    """
    if name == "ModelMixin":
        return diffusers.ModelMixin
    if name.startswith(PREFIX) and is_known(name.removeprefix(PREFIX)):
        return _class_of(architecture_named(name.removeprefix(PREFIX)), own_name=True)
    raise AttributeError(f"module 'secateur' has no attribute {name!r}")


def _one_device(device_map: Any) -> torch.device | None:
    """The device of a map that names one.

    Raises:
        ModelError: it names several, or a strategy.
    """
    device: Any = device_map.get("") if isinstance(device_map, dict) else device_map
    if device_map is None:
        return None
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"a pruned model is loaded to one device; device_map is {device_map}") from error


def _class_of(architecture: type[Any], own_name: bool) -> Any:
    if (architecture, own_name) not in _CLASSES:
        name, module = architecture.__name__, architecture.__module__
        if own_name:
            name, module = f"{PREFIX}{name}", "secateur"
        about = {"__module__": module, "__doc__": architecture.__doc__}
        _CLASSES[architecture, own_name] = type(name, (Pruned, architecture), about)
    return _CLASSES[architecture, own_name]


def _blank(architecture: type[Any], own_name: bool) -> Any:
    kind = _class_of(architecture, own_name)
    return kind.__new__(kind)
