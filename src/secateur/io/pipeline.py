"""Models with the process of their scheduler, and the pipeline that they are part of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import nn
from typing_extensions import Unpack

from ..base.errors import ModelError
from ..base.files import atomic_folder, write_json
from ..models.families.autoencoder_kl import AutoencoderKLDecoder
from ..models.precision import cast_saved
from ..process.base import Process
from ..process.flow import Expert, FlowProcess
from ..process.from_config import process_from_config
from ..process.grid import STEPS
from ..process.named import ProcessLike, config_of, is_process, over
from ..process.reconstruction import reconstruction_by
from .checkpoint import CONFIG, SCHEDULER, check_saved, described, load_model, save_pretrained
from .files import check_file, copy_folder
from .foreign import at_most, loading, quiet
from .index import AUTOENCODERS, INDEX, autoencoder_of, check_pipeline, components, read_object
from .levels import process_of
from .locate import HubOptions, Place, locate
from .manifest import MANIFEST, manifest_of
from .pruned import saved_module
from .single_file import config_in, load_single_file, scheduler_of
from .weights import is_weights, stored_tensors

PER_STORED = 4  # registrations of a parameter while a library builds, fills and ties it
SMALL_PARTS = 1000  # parameters of parts without weights
PART_BUFFERS = 512 * 2**20  # bytes: text encoders keep larger tables than denoisers, such as masks of every layer
EXPERTS = {"transformer", "transformer_2"}
DISTILLED_STEPS = 4  # for Flux.2 klein, whose pipeline says that it is distilled, but not into how many steps

_OF_TRANSFORMERS = re.compile(r"model.*\.safetensors(\.index\..*)?")


@dataclass(frozen=True)
class Loaded:
    """A model with its process, and the pipeline and component it came from, if any.

    Attributes:
        model: the network; for an `AutoencoderKL`, its decoder.
        process: how the network was trained.
        scheduler_config: the config that describes the process.
        pipeline: the folder of the pipeline, or the pipeline itself if it is in memory.
        component: the name of the model in the pipeline.
    """

    model: nn.Module
    process: Process
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    pipeline: Path | DiffusionPipeline | None = None
    component: str | None = None

    @property
    def vae(self) -> Path | nn.Module | None:
        """The autoencoder whose latents the model works on, or its folder; None for a model of pixels or a decoder."""
        if self.pipeline is None or self.component in AUTOENCODERS:
            return None
        if isinstance(self.pipeline, Path):
            return autoencoder_of(self.pipeline)
        return _autoencoder_in(self.pipeline)


def load(
    path_or_id: str | Path,
    *,
    component: str | None = None,
    process: ProcessLike = None,
    subfolder: str | None = None,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **hub: Unpack[HubOptions],
) -> Loaded:
    """Load a model and the process that its scheduler's config describes; for an `AutoencoderKL`, its decoder.

    Args:
        path_or_id: a model folder, a pipeline folder, a hub id, an embedded model (fashion-unet, digits-unet,
            digits-sit), or a `.safetensors` file of the original authors, which is the network alone; a pipeline on
            the hub is downloaded completely.
        component: part of a pipeline: unet, transformer, transformer_2 or vae; by default the unet or transformer that
            it has.
        process: replaces the scheduler config beside the model: a name (ddpm, v-prediction, flow, flow-sit), a
            diffusers scheduler, its config, or a `Process`; auto:4 gives the number of steps of a distilled model.
        subfolder: as in `from_pretrained`.
        variant: variant of the weights.
        torch_dtype: dtype of the weights; by default the saved one.
        device: to load to.
        hub: `revision`, `token` and `cache_dir`.

    Raises:
        ModelError: as `from_pretrained`; also when no scheduler config is found or it is not supported.
    """
    given = config_of(process)
    if Path(path_or_id).is_file():
        found = over(given, lambda: scheduler_of(config_in(Path(path_or_id))))  # fails before the weights are read
        single: Any = _moved(load_single_file(Path(path_or_id), torch_dtype), None, device)
        return Loaded(single, process_of(process if is_process(process) else found, single, True), found)
    place = locate(path_or_id, component, subfolder=subfolder, variant=variant, whole=True, **hub)
    name, _ = described(place)
    if name == AutoencoderKL.__name__:
        if given is not None:
            raise ModelError(f"{path_or_id}: a decoder takes latents, not noise; leave --process out")
        autoencoder: Any = _moved(load_model(place, variant), torch_dtype, device)
        decoder = AutoencoderKLDecoder(autoencoder)
        return Loaded(decoder, reconstruction_by(autoencoder), {}, place.pipeline, place.component)
    scheduler = over(given, lambda: _scheduler_config(place))
    latent = place.pipeline is not None and autoencoder_of(place.pipeline) is not None
    if not is_process(process):
        process_from_config(scheduler)  # fails before the weights are read
        process = scheduler | _few_steps(place.pipeline, scheduler)
    model: Any = _moved(load_model(place, variant), torch_dtype, device)
    model.name_or_path = str(path_or_id)  # as `from_pretrained`
    settled = as_expert(process_of(process, model, latent), place.pipeline, place.component)
    return Loaded(model, settled, scheduler, place.pipeline, place.component)


def loaded_from_pipeline(
    pipeline: DiffusionPipeline, component: str | None = None, process: ProcessLike = None
) -> Loaded:
    """A model of a pipeline in memory, with its process; nothing is copied or moved.

    Args:
        pipeline: any diffusers pipeline with a supported scheduler.
        component: unet, transformer, transformer_2 or vae; by default the unet or transformer that it has.
        process: replaces the pipeline's scheduler; not for a vae.

    Raises:
        ModelError: it has no such component, or its scheduler is not supported.
    """
    present = {name for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    found = [name for name in ((component,) if component else ("unet", "transformer")) if name in present]
    if not found:
        wanted = component or "unet or transformer"
        raise ModelError(f"the {type(pipeline).__name__} has no {wanted}; it has {', '.join(sorted(present))}")
    model = pipeline.components[found[0]]
    if isinstance(model, AutoencoderKL):
        return Loaded(AutoencoderKLDecoder(model), reconstruction_by(model), {}, pipeline, found[0])
    given, beside = config_of(process), config_of(pipeline.components.get("scheduler"))
    if given is None and beside is None:
        raise ModelError(f"the {type(pipeline).__name__} has no scheduler that says what its model was trained on")
    scheduler = over(given, lambda: beside or {})
    if not is_process(process):
        process = scheduler | _few_steps(pipeline, scheduler)
    settled = process_of(process, model, _autoencoder_in(pipeline) is not None)
    return Loaded(model, as_expert(settled, pipeline, found[0]), scheduler, pipeline, found[0])


def load_pipeline(
    path_or_id: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    torch_dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **hub: Unpack[HubOptions],
) -> DiffusionPipeline:
    """Load a pipeline, which may have pruned components, from a folder or the hub; a diffusers pipeline, ready to call.

    Arguments as for `from_pretrained`.

    Raises:
        ModelError: as `from_pretrained`, or it is not a pipeline.
    """
    place = locate(path_or_id, subfolder=subfolder, variant=variant, whole=True, **hub)
    if place.pipeline is None:
        raise ModelError(f"{path_or_id} is a model folder, not a pipeline: it has no {INDEX}")
    models = {str(place.component): _moved(load_model(place, variant), torch_dtype, None)}
    vae = autoencoder_of(place.pipeline)
    if vae is not None and described(at := Place(vae, place.pipeline, vae.name))[0] == AutoencoderKL.__name__:
        models[vae.name] = _moved(load_model(at, variant), torch_dtype, None)
    pipeline = open_pipeline(place.pipeline, torch_dtype, variant, "", **models)
    return pipeline if device is None else pipeline.to(device)


def open_pipeline(
    folder: Path,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    what: str = "",
    **parts: Any,
) -> DiffusionPipeline:
    """Load the pipeline in `folder` with diffusers' own loader, after checking that the folder holds only data.

    Args:
        folder: folder of the pipeline.
        torch_dtype: dtype of the loaded models.
        variant: variant of their weights, if they have it; by default the plain ones, or the only variant of each.
        what: the part that is loaded, for errors.
        parts: components that are loaded already; None leaves one out.

    Raises:
        ModelError: it asks for code or pickles, has links that lead out of it, or cannot be loaded.
    """
    check_pipeline(folder)
    wanted = [name for name in components(folder) if name not in parts]
    variant = variant or _only_variant(folder, wanted)
    options: dict[str, Any] = {} if torch_dtype is None else {"torch_dtype": torch_dtype}
    with loading(f"{what} {folder}".strip()), quiet(text=True):
        stored = sum(stored_tensors(folder / name, folder) for name in wanted)
        with at_most(PER_STORED * stored + SMALL_PARTS, PART_BUFFERS):
            return DiffusionPipeline.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                variant=variant,
                **options,
                **parts,
            )


def save_pipeline(loaded: Loaded, model: nn.Module, folder: str | Path) -> Path:
    """Write the pipeline that `loaded` came from to `folder`, with `model` in place of its component.

    Files of a pipeline folder are copied; a pipeline in memory is written by diffusers. A process that was given to
    `load` replaces the pipeline's scheduler config. Unrelated files in the folder stay.

    Raises:
        SecateurError: as `save_pretrained`; a file of the pipeline leads out of its folder.
    """
    if loaded.pipeline is None or loaded.component is None:
        raise ModelError("this model came from no pipeline; save it with save_pretrained")
    folder = Path(folder)
    with atomic_folder(folder) as temporary:
        if isinstance(loaded.pipeline, Path):
            _copy_around(loaded.pipeline, loaded.component, temporary)
            save_pretrained(model, temporary / loaded.component)
        else:
            check_saved(model)
            _write_with(loaded.pipeline, loaded.component, model, temporary)
        _follow_model(temporary / INDEX, loaded.component, model)
        if loaded.scheduler_config:
            _follow_process(temporary, loaded.scheduler_config)
        written = {path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file()}
    parts = {folder / path.parent for path in written}  # not other models further down
    for path in [each for part in parts for each in part.iterdir() if each.is_file()]:  # leftovers
        if path.relative_to(folder) not in written and _is_of_a_model(path):
            path.unlink()
    return folder


def _few_steps(pipeline: Path | DiffusionPipeline | None, scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The default number of steps of a pipeline marked as distilled, such as Flux.2 klein's, unless one was chosen."""
    settings = {} if pipeline is None else settings_of(pipeline)
    return {STEPS: DISTILLED_STEPS} if settings.get("is_distilled") and STEPS not in scheduler else {}


def as_expert(process: Process, pipeline: Path | DiffusionPipeline | None, component: str | None) -> Process:
    """The process of one of two transformers, whose noise levels meet at the pipeline's `boundary_ratio`."""
    settings = {} if pipeline is None else settings_of(pipeline)
    boundary = settings.get("boundary_ratio")
    if boundary is None or component not in EXPERTS or not isinstance(process, FlowProcess):
        return process
    (rest,) = EXPERTS - {component}
    low, high = (boundary, 1.0) if component == "transformer" else (0.0, boundary)

    @cache
    def other() -> nn.Module:
        if isinstance(pipeline, Path):
            return load_model(locate(pipeline, rest))
        return pipeline.components[rest]  # type: ignore[union-attr]

    return replace(process, expert=Expert(low, high, other))


def settings_of(pipeline: Path | DiffusionPipeline) -> dict[str, Any]:
    """The settings of a pipeline beside its components."""
    return read_object(pipeline / INDEX) if isinstance(pipeline, Path) else dict(pipeline.config)


def _moved(model: nn.Module, torch_dtype: torch.dtype | None, device: torch.device | str | None) -> nn.Module:
    if torch_dtype is not None:
        cast_saved(model, torch_dtype)
    return model if device is None else model.to(device)


def _autoencoder_in(pipeline: DiffusionPipeline) -> nn.Module | None:
    parts = pipeline.components
    return next((parts[name] for name in AUTOENCODERS if parts.get(name) is not None), None)


def scheduler_beside(
    path_or_id: str | Path,
    component: str | None = None,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    **hub: Unpack[HubOptions],
) -> dict[str, Any] | None:
    """The scheduler's config beside a model, wherever `load` would find it; None if there is none."""
    if Path(path_or_id).is_file():
        return None
    try:
        return _scheduler_config(locate(path_or_id, component, subfolder=subfolder, variant=variant, whole=True, **hub))
    except ModelError:
        return None


def _scheduler_config(place: Place) -> dict[str, Any]:
    if place.pipeline is None:
        folders = [place.folder, place.folder.parent / "scheduler"]
    else:
        folders = [place.pipeline / "scheduler", place.pipeline]
    for folder in folders:
        if (path := folder / SCHEDULER).is_file():
            return read_object(check_file(path, place.pipeline or folder))
    raise ModelError(f"no {SCHEDULER} beside the model ({folders[0]}); say --process ddpm, v-prediction or flow")


def _only_variant(folder: Path, wanted: list[str]) -> str | None:
    """The variant of the parts without plain weights, if they have the same one."""
    found = set()
    for name in wanted:
        weights = [path.name for path in (folder / name).glob("*.safetensors")]
        stems = {weight.split("-000")[0].removesuffix(".safetensors").partition(".")[2] for weight in weights}
        if stems and "" not in stems:
            found |= stems
    return found.pop() if len(found) == 1 else None


def _copy_around(pipeline: Path, component: str, target: Path) -> None:
    """Copy everything but the component, which some pipelines keep at the root."""
    weights = {path.name for path in pipeline.iterdir() if is_weights(path.name)}
    copy_folder(pipeline, target, frozenset({component, CONFIG, MANIFEST, *weights}))


def _write_with(pipeline: DiffusionPipeline, component: str, model: nn.Module, target: Path) -> None:
    """Write a pipeline in memory with `model` in place of its component."""
    kept = getattr(pipeline, component)
    setattr(pipeline, component, saved_module(model))
    try:
        pipeline.save_pretrained(target, safe_serialization=True)
    finally:
        setattr(pipeline, component, kept)


def _follow_model(index: Path, component: str, model: nn.Module) -> None:
    """Set the class of the model in the pipeline's index, and in its `id2label` the model's new classes."""
    listed, manifest = read_object(index), manifest_of(model)
    kind = type(saved_module(model))
    library = "secateur" if kind.__module__ == "secateur" else "diffusers"
    listed[component] = [library, kind.__name__]
    steps = [step for step in (manifest.steps if manifest is not None else ()) if step["kind"] == "labels"]
    if "id2label" in listed and steps:
        listed["id2label"] = {str(i): name for i, name in enumerate(steps[-1]["names"])}
    write_json(index, listed)


def _follow_process(pipeline: Path, scheduler_config: Mapping[str, Any]) -> None:
    """Set the scheduler of `scheduler_config` in a pipeline that has another one, or none."""
    place = pipeline / "scheduler" / SCHEDULER
    if not place.is_file() and (pipeline / SCHEDULER).is_file():
        place = pipeline / SCHEDULER
    if not place.is_file() or read_object(place) != scheduler_config:
        write_json(place, scheduler_config)
        index = pipeline / INDEX
        write_json(index, read_object(index) | {"scheduler": ["diffusers", scheduler_config["_class_name"]]})


def _is_of_a_model(path: Path) -> bool:
    return path.name == MANIFEST or is_weights(path.name) or bool(_OF_TRANSFORMERS.fullmatch(path.name))
