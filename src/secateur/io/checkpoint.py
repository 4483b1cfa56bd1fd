"""Saving and loading models: `config.json`, safetensors, and `pruning.json` for a pruned one.

A model is built on the meta device from its config, or from the dense config and the cuts in its manifest. It must have
exactly the tensors in the headers of the weights, by name and shape; then the weights are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.models.embeddings import Timesteps
from torch import nn
from typing_extensions import Unpack

from ..base.distributed import is_main_process, wait_for_everyone
from ..base.errors import ModelError, SecateurError
from ..base.files import atomic_folder, read_json, write_json
from ..base.records import record_of
from ..base.shards import is_sharded
from ..base.units import number_of
from ..models.network import device_of
from ..models.precision import cast_saved
from ..models.registry import architecture_named, is_known, unsupported
from ..structure import removals_of
from .files import check_file
from .foreign import hollow, loading
from .index import read_object
from .locate import ASSETS, HubOptions, Place, locate
from .manifest import (
    FREQUENCIES_KEY,
    MANIFEST,
    MANIFEST_KEY,
    POINTER_KEY,
    Manifest,
    attach,
    manifest_of,
    pruned_skeleton,
    shapes,
)
from .pruned import PREFIX, REFUSAL, dense_class, dense_name, saved_module
from .sharded import whole_model
from .single_file import load_single_file
from .weights import COUNTERS, DTYPES, Entry, common_dtype, headers, is_weights, read

CONFIG = "config.json"
SCHEDULER = "scheduler_config.json"
TENSORS_PER_BLOCK = 200  # more than any block has
MOST_PRUNED = 10_000  # times smaller than its base
RENAMED = {  # by diffusers, which distinguishes them by `norm_type`
    ("Transformer2DModel", "ada_norm_zero"): "DiTTransformer2DModel",
    ("Transformer2DModel", "ada_norm_single"): "PixArtTransformer2DModel",
}


class Pointer(msgspec.Struct):
    """The pointer to the manifest in the config of a pruned model."""

    file: Literal["pruning.json"]
    sha256: str


def save_pretrained(model: nn.Module, folder: str | Path, scheduler_config: Mapping[str, Any] | None = None) -> Path:
    """Write `model` to `folder`: safetensors and JSON only. Unrelated files in the folder stay.

    Every process must call this for a model that is sharded over them (FSDP2); the main one gathers and writes it.

    Raises:
        SecateurError: the disk is full, the folder cannot be written, or the model's tensors do not match its config
            and the cuts made by secateur.
    """
    folder = Path(folder)
    if not is_sharded(model):
        _save(model, folder, scheduler_config)
        return folder
    gathered = whole_model(model, "saving", keep=is_main_process())
    if is_main_process():
        _save(gathered, folder, scheduler_config)
    wait_for_everyone(on_cpu=device_of(model).type == "cpu")
    return folder


def _save(model: nn.Module, folder: Path, scheduler_config: Mapping[str, Any] | None) -> None:
    check_saved(model)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)  # type: ignore[operator]
        if scheduler_config:
            write_json(temporary / SCHEDULER, dict(scheduler_config))
        written = {path.name for path in temporary.iterdir()}
    for path in folder.iterdir():  # leftovers of a model that was saved here before
        if path.name not in written and (path.name == MANIFEST or is_weights(path.name)):
            path.unlink()


def from_pretrained(
    path_or_id: str | Path,
    *,
    component: str | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **hub: Unpack[HubOptions],
) -> nn.Module:
    """Load a dense or pruned model, in eval mode, from a folder, a pipeline folder, a hub id or a single file.

    Args:
        path_or_id: its place, or an embedded model (fashion-unet, digits-unet, digits-sit); a `.safetensors` file has
            the original authors' layout (Stable Diffusion, Flux).
        component: part of a pipeline: unet, transformer or vae; by default the unet or transformer that it has.
        subfolder: folder of the model or pipeline inside it.
        variant: variant of the weights, such as "fp16"; by default the plain ones, or the only variant.
        torch_dtype: dtype of the weights; by default the saved one.
        device: to load to; by default the CPU.
        hub: `revision`, `token` and `cache_dir`, as in diffusers.

    Raises:
        ModelError: there is no model, the folder is damaged or hostile, or its architecture has no declared structure.
    """
    model: Any
    if Path(path_or_id).is_file():
        model = load_single_file(Path(path_or_id), torch_dtype)
    else:
        model = load_model(locate(path_or_id, component, subfolder=subfolder, variant=variant, **hub), variant)
        model.name_or_path = str(path_or_id)  # a manifest of its cut names it so, not by the folder of a cache
    if torch_dtype is not None:
        cast_saved(model, torch_dtype)
    placed: nn.Module = model if device is None else model.to(device)
    return placed


def load_model(place: Place, variant: str | None = None) -> nn.Module:
    """The dense or pruned model at `place`, in eval mode, in its saved dtype.

    Raises:
        ModelError: as `from_pretrained`.
    """
    name, _ = described(place)
    if name.startswith(PREFIX) or not is_known(name):
        raise ModelError(f"{place.folder} cannot be used: {unsupported(name)}")
    model = load_any(place, architecture_named(name), variant)
    # Embedded models are stored in half precision, to keep the package small.
    return nn.Module.float(model) if place.folder.parent == ASSETS else model


def load_any(place: Place, architecture: type[Any], variant: str | None = None) -> nn.Module:
    """As `load_model`, for any class of diffusers.

    Raises:
        ModelError: the folder is damaged or hostile.
    """
    _, config = described(place)
    model: Any
    with loading(place.folder):
        manifest = _manifest(place, config)
        entries = headers(place.folder, place.root, variant)
        _check_dtypes(entries)
        if manifest is not None:
            _check_base(manifest, entries)
            model, renamed = pruned_skeleton(manifest), entries
            _check_fit(model, renamed)
        else:
            config = {key: value for key, value in config.items() if key not in (MANIFEST_KEY, POINTER_KEY)}
            built = hollow(architecture, config, 2 * len(entries) + TENSORS_PER_BLOCK)
            renamed = _renamed(built, entries)
            _check_fit(built, renamed)
            with init_empty_weights(include_buffers=False):
                model = architecture.from_config(config)
        model.load_state_dict(read(renamed), strict=True, assign=True)
        if (dtype := common_dtype(entries)) is not None:
            cast_saved(model, dtype)
        _follow_frequencies(model)
        model.loaded_from = str(place.folder)  # for error messages
        return model.eval()


def described(place: Place) -> tuple[str, dict[str, Any]]:
    """The name of the dense class of the model at `place`, and its config.

    Raises:
        ModelError: there is no such model, or it is quantized.
    """
    path = place.folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{place.folder} holds no {CONFIG}: it is not a diffusers model or pipeline folder")
    config = read_object(check_file(path, place.root))
    if "_class_name" not in config and "command" in config:  # a run, which keeps its settings in a file of that name
        made = [name for name in ("pipeline", "model", "compensated", "pruned") if (place.folder / name).is_dir()]
        give = f"give {place.folder / made[0]}" if made else "it has made no model yet"
        raise ModelError(f"{place.folder} is the folder of a run, not of a model; {give}")
    quantized = config.get("quantization_config")
    if quantized is not None and quantized != REFUSAL:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise ModelError(f"{place.folder} is quantized ({method}), which cannot be pruned; give the model before that")
    name = str(config.get("_class_name"))
    return RENAMED.get((name, str(config.get("norm_type"))), dense_name(name)), config


def check_saved(model: nn.Module) -> None:
    """Record cuts made directly with `remove`, and check that the saved model could be loaded.

    Raises:
        ModelError: tensors match neither the config nor a cut.
    """
    manifest = manifest_of(model)
    if manifest is not None and removals_of(model):
        attach(model, manifest)
    saved = saved_module(model)
    dense = dense_class(saved)
    if not isinstance(saved, ModelMixin) or not is_known(dense.__name__):
        return
    if manifest is None:
        manifest = Manifest({"class": dense.__name__, "config": dict(saved.config)})
    expected, found = shapes(pruned_skeleton(manifest)), shapes(saved)
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            said = f"{name} is {found.get(name, 'missing')}, and {expected.get(name, 'missing')} by its config and cuts"
            raise ModelError(
                f"this {dense.__name__} cannot be saved: {said}; cut with secateur.structure.remove, and merge adapters"
            )


def _manifest(place: Place, config: Mapping[str, Any]) -> Manifest | None:
    """The manifest that the config points to; any other `pruning.json` is a leftover of another model.

    A transformer that only lost blocks is complete without it, as saved by plain diffusers.
    """
    if POINTER_KEY not in config:
        return None
    path, name = place.folder / MANIFEST, str(config.get("_class_name"))
    pointer = record_of(Pointer, config[POINTER_KEY], place.folder / CONFIG)
    try:
        manifest = Manifest.from_json(read_json(check_file(path, place.root) if path.exists() else path), path)
        if manifest.digest != pointer.sha256:
            raise ModelError(f"{path} is not the manifest that {CONFIG} beside it names; save the model again")
    except SecateurError:
        if name != dense_name(name):
            raise
        return None
    if manifest.base["class"] != dense_name(name):
        raise ModelError(f"{path} is of a {manifest.base['class']}, and {CONFIG} beside it of a {name}")
    return manifest


def _check_dtypes(entries: Mapping[str, Entry]) -> None:
    name = next((name for name, entry in entries.items() if entry.dtype not in (*DTYPES, COUNTERS)), None)
    if name is not None:
        raise ValueError(f"{name} is stored as {entries[name].dtype}, as in quantized models; give {', '.join(DTYPES)}")


def _renamed(model: Any, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The entries by diffusers' present names, without those that it ignores."""
    renamed = dict(entries)
    model._fix_state_dict_keys_on_load(renamed)
    passed_over = model._keys_to_ignore_on_load_unexpected or ()
    return {name: e for name, e in renamed.items() if not any(re.search(each, name) for each in passed_over)}


def _check_base(manifest: Manifest, entries: Mapping[str, Entry]) -> None:
    """Refuse a manifest whose base is implausibly large for these weights."""
    blocks = sum(len(cut.removed_blocks) for cut in manifest.cuts)
    most = 2 * len(entries) + TENSORS_PER_BLOCK * (blocks + 1)
    base = hollow(architecture_named(manifest.base["class"]), manifest.base["config"], most)
    left = sum(math.prod(entry.shape) for entry in entries.values())
    if sum(parameter.numel() for parameter in base.parameters()) > MOST_PRUNED * left:
        raise ValueError(f"the base in its {MANIFEST} is more than {MOST_PRUNED:,} times as large as its weights")


def _check_fit(model: nn.Module, entries: Mapping[str, Entry]) -> None:
    """Refuse weights with missing, unexpected or misshapen tensors."""
    built = shapes(model)
    if missing := sorted(built.keys() - entries.keys()):
        raise ValueError(f"its weights lack {number_of(len(missing), 'tensor')}, the first {missing[0]}")
    if homeless := sorted(entries.keys() - built.keys()):
        raise ValueError(
            f"its config has no place for {number_of(len(homeless), 'tensor')} of its weights, the first {homeless[0]}"
        )
    for name, shape in built.items():
        if entries[name].shape != shape:
            raise ValueError(f"{name} is {entries[name].shape} in its weights and {shape} by its config")


def _follow_frequencies(model: nn.Module) -> None:
    """Give a converted DiT its time frequencies 10000^(-k/128); diffusers spaces them by 1/127."""
    if model.config.get(FREQUENCIES_KEY):  # type: ignore[operator, union-attr]
        for module in model.modules():
            if isinstance(module, Timesteps):
                module.downscale_freq_shift = 0
