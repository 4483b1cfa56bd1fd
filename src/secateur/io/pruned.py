"""Classes of pruned models, so that diffusers' own loaders and savers know what to do with one.

A narrower U-Net is of the class `secateur.PrunedUNet2DModel`, which its config and the index of its pipeline name, so
that diffusers finds it here. Its dense class would build it too wide; the config refuses that in one sentence. A
transformer that only lost blocks is what its config says, so it keeps the name of its class, and every diffusers loads
it. Both write their manifest beside the config, whoever saves them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from ..base.errors import ModelError
from ..base.files import write_json
from ..base.lookup import ADDRESS
from ..models.families.autoencoder_kl import AutoencoderKLDecoder
from ..models.registry import architecture_named, is_known

PREFIX = "Pruned"
# Dense classes of diffusers stop at the name of a quantization that they do not know, before they read the weights.
REFUSAL = {
    "quant_method": "pruned: load this model with secateur.from_pretrained, or with AutoModel after `import secateur`"
}
# What diffusers' loaders pass that this one cannot do; the rest of what they pass changes nothing here.
NOT_TAKEN = ("quantization_config", "parallel_config")

_CLASSES: dict[tuple[type[Any], bool], type[Any]] = {}


class Pruned:
    """What a pruned model does differently from its dense class. See `for_diffusers`."""

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
            ModelError: as `secateur.from_pretrained`; an option that it cannot follow.
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
        """Copies and pickles name the dense class: a pruned one is made here, not imported."""
        return _blank, (dense_class(self), type(self).__name__.startswith(PREFIX)), vars(self)  # type: ignore[arg-type]


def dense_class(model: nn.Module) -> type[Any]:
    """The class of the dense model: of the whole autoencoder for a decoder, and without `Pruned`."""
    classes = type(saved_module(model)).__mro__
    return classes[classes.index(Pruned) + 1 if Pruned in classes else 0]


def class_name(model: nn.Module) -> str:
    """The name of the class of `model` for people: that of the dense one."""
    return type(model).__name__.removeprefix(PREFIX)


def dense_name(name: str) -> str:
    """The name of the dense class of the class that a config names."""
    return name.removeprefix(ADDRESS).removeprefix(PREFIX)


def saved_module(model: nn.Module) -> nn.Module:
    """What is saved of `model`: the whole autoencoder for its decoder."""
    return model.autoencoder if isinstance(model, AutoencoderKLDecoder) else model


def give_class(model: nn.Module, loads_in_diffusers: bool) -> None:
    """Make a diffusers model of its dense class one of the pruned class."""
    saved = saved_module(model)
    architecture = dense_class(saved)
    if issubclass(architecture, diffusers.ModelMixin) and "secateur" not in architecture.__module__:
        saved.__class__ = _class_of(architecture, own_name=not loads_in_diffusers)


def for_diffusers(name: str) -> type[Any]:
    """What diffusers asks this package for: a class such as `PrunedUNet2DModel`, and `ModelMixin` to know its kind by.

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
        ModelError: it names several, or how to choose them.
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
