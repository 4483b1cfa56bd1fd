"""Drawing samples into memory, one grid, or a folder of files."""

from __future__ import annotations

import inspect
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import diffusers
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Unpack

from ..base.console import progress as progress_bar
from ..base.console import shown
from ..base.distributed import process_count, process_index, require_folder, wait_for_everyone
from ..base.errors import ModelError, SecateurError, require
from ..base.files import atomic_file, check_folder
from ..base.fingerprint import fingerprint, tensors_fingerprint
from ..base.origin import recorded
from ..base.rows import FileRows, MemoryRows, Rows
from ..base.rules import Count, Seed, at_least, checked
from ..base.seeds import VERSION
from ..base.units import number_of
from ..data.autoencoder import latent_space
from ..data.clips import side_by_side
from ..data.conditions import label_conditions, null_conditions
from ..data.text import open_text_encoder
from ..io.index import INDEX, read_object
from ..models.conditions import Conditions, rows
from ..models.family import Shape
from ..models.network import IMAGE_CHANNELS, class_count, input_shape, takes_text
from ..models.registry import family_of
from ..process.flow import other_expert
from ..process.samplers import check_sampler
from ..process.sampling import generate_batch
from ..reporting.grids import image_grid, to_deep_image, to_image
from .arguments import ModelArguments
from .data import NO_PIPELINE, decoder, inputs_of
from .folder import run_folder
from .subject import Subject, open_subject

MOST_COLUMNS = 20
MOST_PIXELS = 2 * 89_478_485  # of a grid: Pillow refuses larger images as a possible attack
GRIDS = (".png", ".jpg", ".jpeg", ".webp")  # endings of `out` that mean one picture


@recorded
@checked
def sample(
    model: Any,
    *,
    num_images: Count = 64,
    num_inference_steps: Count = 50,
    scheduler: str | None = None,
    class_label: int | None = None,
    prompt: Sequence[str] = (),
    guidance_scale: Annotated[float, at_least(0)] | None = None,
    guidance_channels: Count | None = None,
    seed: Seed = 0,
    batch_size: Count = 128,
    bits: Literal[8, 16] = 8,
    out: str | Path | None = None,
    progress: bool = False,
    **arguments: Unpack[ModelArguments],
) -> Tensor | Path:
    """Draw images: a tensor (N, C, H, W) in [-1, 1]; with `out`, one picture of all, or a folder of PNG files.

    A model of videos gives clips (N, C, T, H, W); in pictures their frames stand side by side.

    Image i depends on the seed and i only. The same call resumes a folder that was begun, and torchrun divides the
    images between processes. Images of a class-conditional model lie in one sub-folder per class, a layout that `data`
    accepts.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned.
        num_images: number of images.
        num_inference_steps: sampler steps.
        scheduler: class name of a diffusers scheduler, such as DPMSolverMultistepScheduler; by default the process's
            own deterministic one.
        class_label: draw this class; by default, all classes of a class-conditional model in turn.
        prompt: one or more texts, used in turn, for a text-conditional pipeline.
        guidance_scale: classifier-free guidance; 1 is off. By default that of the pipeline in diffusers, or 1 without a
            pipeline or a null condition.
        guidance_channels: number of output channels that are guided, by default all; the original samplers of DiT and
            SiT guide 3.
        seed: seed of the images.
        batch_size: images drawn at once; does not change them.
        bits: bits of a pixel in a folder of PNG files; 16 for models of grey images whose data had them.
        out: picture to write (.png, .jpg, .webp), or a folder.
        progress: show progress bars and print notes.
        arguments: those of `ModelArguments`.

    Raises:
        SecateurError: bad input.
    """
    place = None if out is None else Path(out)
    grid = place is not None and place.suffix.lower() in GRIDS
    if place is not None and not grid and place.suffix.lower() in Image.registered_extensions():
        raise SecateurError(f"{place} names a picture; pictures are written as {', '.join(GRIDS)}")
    require_folder("sample", None if grid else place)
    if place is not None and grid:
        require(not place.is_dir(), f"{place} is a folder; choose another name for the file")
        check_folder(place.parent)
    with shown(progress):
        subject = open_subject(model, **arguments)
        channels = input_shape(subject.model)[0]
        if subject.loaded.vae is None and channels not in IMAGE_CHANNELS:
            raise ModelError(
                f"the model makes {channels}-channel latents and no VAE is beside it; give its whole pipeline"
            )
        check_sampler(subject.process, scheduler, num_inference_steps)
        _check_bits(bits, subject, place is not None and not grid)
        _check_room(place, num_images, subject, grid)
        classes = class_count(subject.model)
        labels = _labels(classes, class_label, num_images)
        if takes_text(subject.model):
            conditions, null = _text_conditions(subject, prompt)
        else:
            require(not prompt, f"{subject.name} takes no text: it has no use for a prompt")
            conditions, null = label_conditions(labels), null_conditions(subject.model)
        if guidance_scale is None:
            guidance_scale = default_guidance(subject) if null else 1.0
        require(
            guidance_scale == 1 or bool(null),
            "the model has no null condition to guide away from; use guidance_scale 1",
        )
        decode, turn, guidance = decoder(subject), len(prompt) or num_images, guidance_scale

        def draw(indices: Sequence[int]) -> Tensor:
            return generate_batch(
                subject.model,
                subject.process,
                indices,
                input_shape(subject.model),
                rows(conditions, torch.tensor(indices) % turn),
                seed=seed,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance,
                guidance_channels=guidance_channels,
                null=null,
                scheduler=scheduler,
                decode=decode,
            ).cpu()

        if place is None:
            return _drawn(MemoryRows(num_images, batch_size), draw)
        settings = {
            "command": "sample",
            "model": subject.name,
            "num_inference_steps": num_inference_steps,
            "scheduler": scheduler,
            "class_label": class_label,
            "prompt": list(prompt),
            "guidance_scale": guidance_scale,
            "guidance_channels": guidance_channels,
            "seed": seed,
            "bits": bits,
            "draws": VERSION,
            **subject.settings,
        }
        inputs = inputs_of(model=subject) | _drawn_with(subject, {**conditions, **null}, decode)
        if grid:
            by_class = classes if class_label is None and classes and classes <= MOST_COLUMNS else None
            parts = place.with_name(f".{place.name}.parts")
            folder = parts / fingerprint([settings, inputs, num_images, batch_size])
            images = _drawn(FileRows(num_images, batch_size, folder), draw)
            write_picture(image_grid(side_by_side(images), by_class or math.ceil(num_images**0.5)), place)
            shutil.rmtree(parts)
        else:
            with run_folder(place, settings, inputs):
                wait_for_everyone(subject.on_cpu)  # all stop if the folder is refused
                files = [_file(place, index, labels) for index in range(num_images)]
                _write_files(files, batch_size, draw, to_image if bits == 8 else to_deep_image)
        return place


def _drawn_with(subject: Subject, conditions: Conditions, decode: Callable[[Tensor], Tensor] | None) -> dict[str, str]:
    """Fingerprints of what samples depend on beside the network: its other expert, the text encoders, the VAE."""
    found = {"text encoder": tensors_fingerprint(conditions)} if takes_text(subject.model) else {}
    if (expert := other_expert(subject.process)) is not None:
        found["expert"] = tensors_fingerprint(expert.state_dict())
    if decode is not None:
        zeros = torch.zeros(1, *input_shape(subject.model), device=subject.device)
        found["vae"] = fingerprint(decode(zeros).double().sum().item())
    return found


def default_guidance(subject: Subject) -> float:
    """The default guidance scale of the subject's pipeline in diffusers; 1 is off.

    It is 1 for a guidance-distilled model, which takes its scale as an input, for a model of few steps, which needs
    none, and for `true_cfg_scale`, which is off without a negative prompt.
    """
    pipeline = subject.loaded.pipeline
    if pipeline is None:
        return 1.0
    index = read_object(pipeline / INDEX) if isinstance(pipeline, Path) else pipeline.config
    kind = getattr(diffusers, str(index["_class_name"])) if isinstance(pipeline, Path) else type(pipeline)
    parameters = inspect.signature(kind.__call__).parameters
    is_distilled = index.get("is_distilled") or getattr(subject.model, "config", {}).get("guidance_embeds")
    if is_distilled or "true_cfg_scale" in parameters or "guidance_scale" not in parameters:
        return 1.0
    default = parameters["guidance_scale"].default
    offset = 1 - family_of(subject.model).unguided
    return float(default) + offset if isinstance(default, int | float) else 1.0


def write_picture(image: Image.Image, path: Path) -> None:
    """Write `image` in the format that the ending of `path` names."""
    kind = {".png": "PNG", ".webp": "WEBP"}.get(path.suffix.lower(), "JPEG")
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    with atomic_file(path) as temporary:
        image.save(temporary, format=kind, **options)


def _labels(classes: int | None, chosen: int | None, count: int) -> list[int] | None:
    """The class of each image: the chosen one, or all in turn; None for a model without classes."""
    if chosen is None:
        return None if classes is None else [i % classes for i in range(count)]
    if classes is None:
        raise SecateurError(f"class_label is {chosen}, and the model has no classes; leave it out")
    require(0 <= chosen < classes, f"class_label is {chosen}; give 0 to {classes - 1}, one of the model's classes")
    return [chosen] * count


def _text_conditions(subject: Subject, prompts: Sequence[str]) -> tuple[Conditions, Conditions]:
    """The conditions of every prompt, and those of an empty one."""
    require(len(prompts) > 0, 'the model takes text: give --prompt "what to draw"')
    if subject.loaded.pipeline is None:
        raise ModelError(NO_PIPELINE)
    *_, height, width = image_shape(subject)
    encoder = open_text_encoder(subject.loaded.pipeline, (height, width), subject.device)
    return encoder(prompts), encoder.null()


def image_shape(subject: Subject) -> Shape:
    """(C, H, W) of the images, or (C, T, H, W) of the clips, after a pipeline has decoded them."""
    shape, vae = input_shape(subject.model), subject.loaded.vae
    return shape if vae is None else latent_space(vae).image_shape(shape)


def _check_bits(bits: int, subject: Subject, in_folder: bool) -> None:
    """Refuse 16 bits where no format that people open holds them."""
    if bits == 16:
        require(in_folder, "16 bits are written into PNG files; give a folder as --out")
        channels = image_shape(subject)[0]
        require(channels == 1, f"16 bits are written of grey images, and {subject.name} draws {channels} channels")


def _check_room(place: Path | None, count: int, subject: Subject, grid: bool) -> None:
    """Refuse more images than fit into memory, onto the disk as files, or into one picture that programs open."""
    shape = image_shape(subject)
    if place is None:
        image = torch.float32.itemsize * math.prod(shape)
        most = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // image
        require(count <= most, f"num_images is {count}; this machine's memory holds {most}, so give out=, a folder")
        return
    if grid:
        most = MOST_PIXELS // math.prod(shape[1:])
        require(count <= most, f"num_images is {count}; a grid takes {most} of this size, so give a folder as --out")
        return
    there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    disk, done = os.statvfs(there), sum(1 for _ in place.rglob("*.png"))
    room = disk.f_bavail * disk.f_frsize // disk.f_bsize  # a file takes at least one block
    room = min(room, disk.f_favail) if disk.f_files else room  # some file systems do not count files
    require(count <= room + done, f"num_images is {count}; the disk of {place} has room for {number_of(room, 'file')}")


def _drawn(parts: Rows, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
    """All images; those that a stopped run drew are in `parts`."""
    parts.fill(lambda indices: {"images": draw(indices)}, "sampling")
    return parts.columns(["images"])["images"]


def _file(folder: Path, index: int, labels: list[int] | None) -> Path:
    return (folder if labels is None else folder / str(labels[index])) / f"{index:06d}.png"


def _write_files(
    files: Sequence[Path],
    batch_size: int,
    draw: Callable[[Sequence[int]], Tensor],
    to_picture: Callable[[Tensor], Image.Image],
) -> None:
    """One PNG per image: this process's share of those that are not there yet."""
    mine = range(process_index(), len(files), process_count())
    missing = [index for index in mine if not files[index].is_file()]
    with progress_bar("sampling", len(mine), start=len(mine) - len(missing)) as advance:
        for start in range(0, len(missing), batch_size):
            indices = missing[start : start + batch_size]
            for index, image in zip(indices, side_by_side(draw(indices)), strict=True):
                with atomic_file(files[index]) as temporary:
                    to_picture(image).save(temporary, format="PNG")
            advance(len(indices), "")
