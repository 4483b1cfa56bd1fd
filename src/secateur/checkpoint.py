"""Saving and loading: `config.json`, safetensors, `scheduler_config.json`, and `pruning.json` for a pruned model.

The manifest holds the dense class, its config and every cut since, in order. Loading builds the dense class without
memory, replays the cuts on shapes, and loads the weights strictly. Nothing is ever unpickled.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .errors import ModelError, SecateurError
from .files import atomic_folder, read_json, write_json
from .process import Process, process_from_config
from .structure import Cut, describe, remove, supported_architectures

MANIFEST = "pruning.json"
FORMAT_VERSION = 1
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
COMPONENTS = ("unet", "transformer")
LATENT_COMPONENTS = ("vae", "vqvae")


@dataclass(frozen=True)
class Manifest:
    """Where a pruned model comes from: its dense base and, in order, every cut and recovery since."""

    base: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "format": "secateur-pruning",
            "format_version": FORMAT_VERSION,
            "base": dict(self.base),
            "steps": [dict(step) for step in self.steps],
            "versions": library_versions(),
        }


@dataclass(frozen=True)
class Loaded:
    """A model with its process, and the pipeline folder and component it came from, if any."""

    model: nn.Module
    process: Process
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    pipeline: Path | None = None
    component: str | None = None


def library_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("secateur", "torch", "diffusers", "safetensors")}


def manifest_of(model: nn.Module) -> Manifest | None:
    """The manifest of a model that `apply_cut` pruned or `from_pretrained` loaded; None for a dense model."""
    return getattr(model, "pruning_manifest", None)


def apply_cut(model: nn.Module, cut: Cut, details: Mapping[str, Any] | None = None, base_id: str = "") -> nn.Module:
    """Remove `cut` from `model` in place, write it into the model's manifest with `details`, and return the model."""
    structure = describe(model)
    manifest = manifest_of(model) or Manifest(
        {"id": base_id, "class": type(model).__name__, "config": _plain_config(model)}
    )
    step = {
        "kind": "cut",
        "dims": {
            name: {"size": structure.dims[name].size, "kept": list(units)} for name, units in sorted(cut.kept.items())
        },
        "removed_blocks": list(cut.removed_blocks),
        **(details or {}),
    }
    remove(model, structure, cut)
    if type(model).__name__ == "DiTTransformer2DModel":
        # Keeps a depth-pruned transformer loadable by plain diffusers.
        model.register_to_config(num_layers=len(model.transformer_blocks))  # type: ignore[operator, arg-type]
    _attach(model, replace(manifest, steps=(*manifest.steps, step)))
    return model


def note_step(model: nn.Module, kind: str, details: Mapping[str, Any]) -> None:
    """Append what was done to a pruned model, for example a recovery, to its manifest."""
    manifest = manifest_of(model)
    if manifest is not None:
        _attach(model, replace(manifest, steps=(*manifest.steps, {"kind": kind, **details})))


def save_pretrained(model: nn.Module, folder: str | Path, scheduler_config: Mapping[str, Any] | None = None) -> Path:
    """Write `model` to `folder`, whole or not at all: safetensors and JSON only."""
    manifest = manifest_of(model)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)  # type: ignore[operator]
        if manifest is not None:
            write_json(temporary / MANIFEST, manifest.to_json())
        if scheduler_config:
            write_json(temporary / SCHEDULER, dict(scheduler_config))
    return Path(folder)


def save_pipeline(loaded: Loaded, model: nn.Module, folder: str | Path) -> Path:
    """Write a copy of the pipeline folder that `loaded` came from with `model` in place of its component."""
    assert loaded.pipeline is not None
    assert loaded.component is not None
    with atomic_folder(folder) as temporary:
        shutil.copytree(
            loaded.pipeline,
            temporary,
            dirs_exist_ok=True,
            ignore=lambda parent, names: [name for name in names if name.startswith(".") or name == loaded.component],
        )
        save_pretrained(model, temporary / loaded.component)
    return Path(folder)


def push_to_hub(model: nn.Module, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload `model` as `save_pretrained` writes it, and return the address of the commit."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pretrained(model, Path(scratch) / "model")
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Pruned with secateur"))


def from_pretrained(path_or_id: str | Path, *, torch_dtype: torch.dtype | None = None) -> nn.Module:
    """Load a dense or pruned model, in eval mode, from a folder, a pipeline folder, or a hub id.

    Raises:
        ModelError: nothing is there, the folder is damaged, or its architecture has no declared structure.
    """
    model = load(path_or_id).model
    return model if torch_dtype is None else model.to(torch_dtype)


def load(path_or_id: str | Path, *, process_config: Mapping[str, Any] | None = None) -> Loaded:
    """Load a model and the process that its scheduler's config describes.

    Args:
        path_or_id: a model folder, a pipeline folder (its `unet` or `transformer` is taken), or a hub id.
        process_config: a scheduler config to use instead of the one beside the model.

    Raises:
        ModelError: as `from_pretrained`; also when no scheduler config is found or it is not supported.
    """
    folder = _local_folder(path_or_id)
    index = folder / "model_index.json"
    if not index.is_file():
        scheduler = dict(process_config or _scheduler_config([folder, folder.parent / "scheduler"]))
        return Loaded(_load_model(folder, str(path_or_id)), process_from_config(scheduler), scheduler)
    listed = _read(index)
    component = next((name for name in COMPONENTS if name in listed), None)
    if component is None:
        raise ModelError(f"{index} lists neither of the components {', '.join(COMPONENTS)}")
    latent = [name for name in LATENT_COMPONENTS if name in listed]
    if latent:
        raise ModelError(f"{folder} works on the latents of a {latent[0]}; only pixel-space pipelines are supported")
    scheduler = dict(process_config or _scheduler_config([folder / "scheduler", folder]))
    # Some hub folders keep their only component at the root.
    model_folder = folder / component if (folder / component).is_dir() else folder
    model = _load_model(model_folder, str(path_or_id))
    return Loaded(model, process_from_config(scheduler), scheduler, folder, component)


def load_pipeline(path: str | Path) -> DiffusionPipeline:
    """A pipeline folder that holds a pruned component, as a diffusers pipeline ready to call."""
    loaded = load(path)
    if loaded.pipeline is None:
        raise ModelError(f"{path} is a model folder, not a pipeline: it has no model_index.json")
    return DiffusionPipeline.from_pretrained(loaded.pipeline, **{str(loaded.component): loaded.model})


def _local_folder(path_or_id: str | Path) -> Path:
    folder = Path(path_or_id)
    if folder.is_dir():
        return folder
    text = str(path_or_id)
    if text.count("/") != 1 or folder.is_absolute() or text.startswith("."):
        raise ModelError(f"{path_or_id} is neither a folder nor a hub id such as google/ddpm-cifar10-32")
    try:
        return Path(snapshot_download(text, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{path_or_id} is no local folder, and the hub did not give it: {reason}") from error


def _scheduler_config(folders: list[Path]) -> dict[str, Any]:
    for folder in folders:
        if (folder / SCHEDULER).is_file():
            return _read(folder / SCHEDULER)
    raise ModelError(f"no {SCHEDULER} beside the model ({folders[0]}); say --process ddpm, v-prediction or flow")


def _read(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except SecateurError as error:
        raise ModelError(str(error)) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def _load_model(folder: Path, base_id: str) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: it is not a diffusers model or pipeline folder")
    pruned = (folder / MANIFEST).is_file()
    base = _read(folder / MANIFEST).get("base") if pruned else None
    name = base.get("class") if isinstance(base, dict) else _read(folder / "config.json").get("_class_name")
    if name not in supported_architectures():
        raise ModelError(
            f"{folder} holds a {name}, which is not supported; supported: {', '.join(supported_architectures())}"
        )
    try:
        model = _load_pruned(folder, name) if pruned else _load_dense(folder, name)
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        SafetensorError,
    ) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ModelError(f"{folder} cannot be loaded: {reason}") from error
    return model.eval()


def _load_dense(folder: Path, name: str) -> nn.Module:
    model, report = getattr(diffusers, name).from_pretrained(
        folder, use_safetensors=True, local_files_only=True, output_loading_info=True, low_cpu_mem_usage=False
    )
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        raise ValueError(f"its weights lack {len(missing)} tensors, the first {missing[0]}")
    return model


def _load_pruned(folder: Path, name: str) -> nn.Module:
    value = _read(folder / MANIFEST)
    if value.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{MANIFEST} has format version {value.get('format_version')}; this secateur reads {FORMAT_VERSION}"
        )
    with init_empty_weights(include_buffers=False):
        model = getattr(diffusers, name).from_config(value["base"]["config"])
    for step in value["steps"]:
        if step["kind"] == "cut":
            kept = {dim: tuple(entry["kept"]) for dim, entry in step["dims"].items()}
            remove(model, describe(model), Cut(kept, tuple(step["removed_blocks"])))
    if name == "DiTTransformer2DModel":
        model.register_to_config(num_layers=len(model.transformer_blocks))
    model.load_state_dict(_read_weights(folder), strict=True, assign=True)
    _attach(model, Manifest(value["base"], tuple(value["steps"])))
    return model


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        return _aligned(load_file(folder / WEIGHTS))
    names = sorted(set(_read(index)["weight_map"].values()))
    weights: dict[str, torch.Tensor] = {}
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index.name} names a file outside the folder: {name}")
        weights |= _aligned(load_file(folder / name))
    return weights


def _aligned(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in memory of torch's own alignment: kernels may round differently on a file's odd offsets."""
    return {name: weights.pop(name).clone() for name in sorted(weights)}


def _attach(model: nn.Module, manifest: Manifest) -> None:
    model.pruning_manifest = manifest  # type: ignore[assignment]


def _plain_config(model: nn.Module) -> dict[str, Any]:
    config: Mapping[str, Any] = model.config  # type: ignore[assignment]
    return {key: value for key, value in config.items() if not key.startswith("_")}
