"""Classes of pruned models, so that diffusers' own loaders and savers know what to do with one.

A narrower U-Net is of the class `PrunedUNet2DModel`, which a pipeline's index names together with this package, so that
diffusers finds it here. A transformer that only lost blocks is what its config says, so it keeps the name of its class,
and every diffusers loads it. Both write their manifest beside the config, whoever saves them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
from torch import nn

from ..base.files import write_json
from ..models.families.autoencoder_kl import AutoencoderKLDecoder
from ..models.registry import architecture_named, is_known

PREFIX = "Pruned"

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
        write_json(path, config | {POINTER_KEY: {"file": MANIFEST, "sha256": manifest.digest}})
        write_json(Path(save_directory, MANIFEST), manifest.to_json())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> nn.Module:
        """As `secateur.from_pretrained`; what diffusers' loaders pass besides is not needed here."""
        from .checkpoint import from_pretrained

        taken = ("subfolder", "variant", "revision", "token", "cache_dir")
        given = {name: options[name] for name in taken if options.get(name) is not None}
        return from_pretrained(
            pretrained_model_name_or_path, torch_dtype=options.get("torch_dtype", options.get("dtype")), **given
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


class _WithPruned(type(diffusers)):  # type: ignore[misc]
    """The module of diffusers, which imports its classes when they are asked for, with a pruned one of each model."""

    def __getattr__(self, name: str) -> Any:
        dense = name.removeprefix(PREFIX)
        if name != dense and is_known(dense) and issubclass(architecture_named(dense), diffusers.ModelMixin):
            return _class_of(architecture_named(dense), own_name=True)
        return super().__getattr__(name)


def register_with_diffusers() -> None:
    """Let `AutoModel.from_pretrained` find the class that the config of a narrower model names."""
    diffusers.__class__ = _WithPruned


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


register_with_diffusers()
