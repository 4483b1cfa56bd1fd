"""Saving and loading: `config.json`, safetensors, `scheduler_config.json`, and `pruning.json` for a pruned model.

Loading a pruned model builds its dense class without memory, replays the manifest's cuts on shapes, and loads the
weights strictly. Nothing is ever unpickled.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.models.embeddings import Timesteps
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import nn

from ..base.errors import ModelError, SecateurError, first_line
from ..base.files import atomic_folder, read_json, write_json
from ..models.families.autoencoder_kl import AutoencoderKLDecoder
from ..models.registry import architecture_named, supported_architectures, unsupported
from ..process.base import Process
from ..process.from_config import process_from_config
from ..process.reconstruction import reconstruction_by
from .levels import levels_of
from .manifest import MANIFEST, MANIFEST_KEY, Manifest, manifest_of, pruned_skeleton

FREQUENCIES_KEY = "secateur_original_frequencies"  # of the config of a DiT that was converted
WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
SCHEDULER = "scheduler_config.json"
COMPONENTS = ("unet", "transformer")
LATENT_COMPONENTS = ("vae", "vqvae")
UNWANTED = ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]  # other copies of the same weights


@dataclass(frozen=True)
class Loaded:
    """A model with its process, and the pipeline folder and component it came from, if any."""

    model: nn.Module
    process: Process
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    pipeline: Path | None = None
    component: str | None = None

    @property
    def vae(self) -> Path | None:
        """The folder of the autoencoder whose latents the model works on; None for a model of pixels and a decoder."""
        if self.pipeline is None or self.component in LATENT_COMPONENTS:
            return None
        return _autoencoder_of(self.pipeline)


def save_pretrained(model: nn.Module, folder: str | Path, scheduler_config: Mapping[str, Any] | None = None) -> Path:
    """Write `model` to `folder`: safetensors and JSON only. Other files that are there stay.

    Raises:
        SecateurError: the disk is full, or the folder cannot be written.
    """
    folder, manifest = Path(folder), manifest_of(model)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)  # type: ignore[operator]
        if manifest is not None:
            write_json(temporary / MANIFEST, manifest.to_json())
        if scheduler_config:
            write_json(temporary / SCHEDULER, dict(scheduler_config))
        written = {path.name for path in temporary.iterdir()}
    for name in {MANIFEST, WEIGHTS, WEIGHTS_INDEX} - written:
        (folder / name).unlink(missing_ok=True)  # of a model that was saved here before
    return folder


def save_pipeline(loaded: Loaded, model: nn.Module, folder: str | Path) -> Path:
    """Write a copy of the pipeline folder that `loaded` came from with `model` in place of its component.

    A scheduler config that `load` was given instead of the pipeline's takes its place too.
    """
    assert loaded.pipeline is not None
    assert loaded.component is not None
    replaced = {loaded.component, "config.json", WEIGHTS, WEIGHTS_INDEX, MANIFEST}  # some keep it at the root

    def left_out(parent: str, names: list[str]) -> set[str]:
        at_root = Path(parent) == loaded.pipeline
        return {name for name in names if name.startswith(".") or (at_root and name in replaced)}

    with atomic_folder(folder) as temporary:
        shutil.copytree(loaded.pipeline, temporary, dirs_exist_ok=True, ignore=left_out)
        save_pretrained(model, temporary / loaded.component)
        _follow_labels(temporary / "model_index.json", model)
        if loaded.scheduler_config:
            _follow_process(temporary, loaded.scheduler_config)
    return Path(folder)


def _follow_labels(index: Path, model: nn.Module) -> None:
    """Name the classes of a model that was given others in its pipeline's `id2label`, if it has one."""
    listed, manifest = _read(index), manifest_of(model)
    steps = [step for step in (manifest.steps if manifest is not None else ()) if step["kind"] == "labels"]
    if "id2label" in listed and steps:
        write_json(index, listed | {"id2label": {str(i): name for i, name in enumerate(steps[-1]["names"])}})


def _follow_process(pipeline: Path, scheduler_config: Mapping[str, Any]) -> None:
    """Name the scheduler of `scheduler_config` in a pipeline that has another one, or none."""
    place = pipeline / "scheduler" / SCHEDULER
    if not place.is_file() and (pipeline / SCHEDULER).is_file():
        place = pipeline / SCHEDULER
    if not place.is_file() or _read(place) != scheduler_config:
        write_json(place, scheduler_config)
        index = pipeline / "model_index.json"
        write_json(index, _read(index) | {"scheduler": ["diffusers", scheduler_config["_class_name"]]})


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    scheduler_config: Mapping[str, Any] | None = None,
    *,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Upload `model` as `save_pretrained` writes it, and return the address of the commit."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = save_pretrained(model, Path(scratch) / "model", scheduler_config)
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Pruned with secateur"))


def from_pretrained(
    path_or_id: str | Path, *, component: str | None = None, torch_dtype: torch.dtype | None = None
) -> nn.Module:
    """Load a dense or pruned model, in eval mode, from a folder, a pipeline folder, or a hub id.

    Args:
        path_or_id: where it is.
        component: which part of a pipeline: unet, transformer or vae; by default the first two's one that is there.
        torch_dtype: of the weights; by default the saved one.

    Raises:
        ModelError: nothing is there, the folder is damaged, or its architecture has no declared structure.
    """
    model = _load_model(_locate(path_or_id, component)[0])
    return model if torch_dtype is None else model.to(torch_dtype)


def load(
    path_or_id: str | Path, *, component: str | None = None, process_config: Mapping[str, Any] | None = None
) -> Loaded:
    """Load a model and the process that its scheduler's config describes; of an `AutoencoderKL`, its decoder.

    Args:
        path_or_id: a model folder, a pipeline folder, or a hub id; of a pipeline on the hub everything is fetched.
        component: which part of a pipeline: unet, transformer or vae; by default the first two's one that is there.
        process_config: a scheduler config to use instead of the one beside the model.

    Raises:
        ModelError: as `from_pretrained`; also when no scheduler config is found or it is not supported.
    """
    folder, pipeline, component = _locate(path_or_id, component, whole=True)
    if _is_autoencoder(folder):
        if process_config is not None:
            raise ModelError(f"{path_or_id}: a decoder takes latents, not noise; leave --process out")
        autoencoder: Any = _load_model(folder)
        return Loaded(AutoencoderKLDecoder(autoencoder), reconstruction_by(autoencoder), {}, pipeline, component)
    places = [folder, folder.parent / "scheduler"] if pipeline is None else [pipeline / "scheduler", pipeline]
    scheduler = dict(process_config or _scheduler_config(places))
    latent = pipeline is not None and _autoencoder_of(pipeline) is not None
    # Samplers clip to [-1, 1] unless told otherwise, and latents go beyond.
    unclipped = {"clip_sample": False, "thresholding": False} if latent else {}
    process_from_config(scheduler)  # refused before the weights are read
    model = _load_model(folder)
    return Loaded(model, process_from_config(levels_of(scheduler, model) | unclipped), scheduler, pipeline, component)


def load_pipeline(path: str | Path) -> DiffusionPipeline:
    """A pipeline folder that holds pruned components, as a diffusers pipeline ready to call.

    Raises:
        ModelError: as `from_pretrained`, or the folder is no pipeline.
    """
    folder, pipeline, component = _locate(path)
    if pipeline is None:
        raise ModelError(f"{path} is a model folder, not a pipeline: it has no model_index.json")
    models = {str(component): _load_model(folder)}
    if (vae := _autoencoder_of(pipeline)) is not None and _described(vae) is not None:
        models[vae.name] = _load_model(vae)
    try:
        return DiffusionPipeline.from_pretrained(pipeline, use_safetensors=True, trust_remote_code=False, **models)
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be loaded: {first_line(error)}") from error


def _locate(
    path_or_id: str | Path, component: str | None = None, whole: bool = False
) -> tuple[Path, Path | None, str | None]:
    """The model's folder, and the pipeline's folder and the component's name if it is part of one.

    From the hub only the component is fetched, or the `whole` pipeline.
    """
    folder, text = Path(path_or_id), str(path_or_id)
    if folder.is_dir():
        return _component(folder, component)
    if text.count("/") != 1 or folder.is_absolute() or text.startswith("."):
        raise ModelError(f"{path_or_id} is neither a folder nor a hub id such as google/ddpm-cifar10-32")
    try:
        # The small files first: they say which weights are wanted, and whether the model is supported.
        small = Path(snapshot_download(text, allow_patterns=["*.json"]))
        model, pipeline, component = _component(small, component)
        wanted = ["*.json", "*.safetensors" if pipeline in (None, model) else f"{component}/*.safetensors"]
        if whole and pipeline not in (None, model):
            wanted = ["*.json", "*/*.safetensors", "tokenizer*/*"]
        fetched = Path(snapshot_download(text, allow_patterns=wanted, ignore_patterns=UNWANTED))
        return _component(fetched, component)
    except SecateurError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path_or_id} is no local folder, and the hub did not give it: {first_line(error)}"
        ) from error


def _component(folder: Path, component: str | None = None) -> tuple[Path, Path | None, str | None]:
    index = folder / "model_index.json"
    if not index.is_file():
        if component is not None:
            raise ModelError(f"{folder} is a model folder, not a pipeline with a component {component}")
        return folder, None, None
    present = _present(index)
    found = [name for name in (COMPONENTS if component is None else (component,)) if name in present]
    if not found:
        raise ModelError(f"{index} lists no {component or ' or '.join(COMPONENTS)}; it has {', '.join(present)}")
    component = found[0]
    # Some hub folders keep their only component at the root.
    return (folder / component if (folder / component).is_dir() else folder), folder, component


def _present(index: Path) -> list[str]:
    """Names of the components that a model_index.json lists and does not leave out."""
    listed = _read(index)
    return [name for name, value in listed.items() if isinstance(value, list) and value and value[0] is not None]


def _autoencoder_of(pipeline: Path) -> Path | None:
    present = _present(pipeline / "model_index.json")
    return next((pipeline / name for name in LATENT_COMPONENTS if name in present), None)


def _is_autoencoder(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and _read(config).get("_class_name") == AutoencoderKL.__name__


def _described(folder: Path) -> Any:
    """The manifest of the model in `folder` as JSON; None for a dense model."""
    if (folder / MANIFEST).is_file():
        return _read(folder / MANIFEST)
    return _read(folder / "config.json").get(MANIFEST_KEY)


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


def _load_model(folder: Path) -> nn.Module:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: it is not a diffusers model or pipeline folder")
    config = _read(folder / "config.json")
    described = _described(folder)
    base = described.get("base") if isinstance(described, dict) else None
    name = base.get("class") if isinstance(base, dict) else config.get("_class_name")
    if name not in supported_architectures():
        raise ModelError(f"{folder} cannot be used: {unsupported(str(name))}")
    try:
        if described is None:
            model = _load_dense(folder, architecture_named(name))
        else:
            model = _load_pruned(folder, Manifest.from_json(described))
        _follow_frequencies(model)
        return model.eval()
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        lines = (str(error).strip() or repr(error)).splitlines()
        # torch names what does not fit in the second line.
        raise ModelError(f"{folder} cannot be loaded: {' '.join(line.strip() for line in lines[:2])}") from error


def _load_dense(folder: Path, architecture: type[Any]) -> nn.Module:
    dtype = _saved_dtype(folder)
    model, report = architecture.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        low_cpu_mem_usage=False,
        torch_dtype=dtype,
    )
    missing = [*report["missing_keys"], *report["mismatched_keys"]]
    if missing:
        raise ValueError(f"its weights lack {len(missing)} tensors, the first {missing[0]}")
    return model if dtype is None else nn.Module.to(model, dtype)  # buffers that are not saved; past diffusers' warning


def _load_pruned(folder: Path, manifest: Manifest) -> nn.Module:
    model = pruned_skeleton(manifest)
    weights = _read_weights(folder)
    model.load_state_dict(weights, strict=True, assign=True)
    dtypes = {tensor.dtype for tensor in weights.values()}
    if len(dtypes) == 1:
        nn.Module.to(model, dtypes.pop())  # as above
    return model


def _saved_dtype(folder: Path) -> torch.dtype | None:
    """The dtype that all weights in one file share; None where they do not, or are spread over files."""
    if not (folder / WEIGHTS).is_file():
        return None
    with safe_open(folder / WEIGHTS, "pt") as weights:
        dtypes = {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return names.get(dtypes.pop()) if len(dtypes) == 1 else None


def _follow_frequencies(model: nn.Module) -> None:
    """Give a converted DiT its time frequencies 10000^(-k/128); diffusers spaces them by 1/127."""
    if model.config.get(FREQUENCIES_KEY):  # type: ignore[operator, union-attr]
        for module in model.modules():
            if isinstance(module, Timesteps):
                module.downscale_freq_shift = 0


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    index = folder / WEIGHTS_INDEX
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


Component = Literal["unet", "transformer", "vae"]
