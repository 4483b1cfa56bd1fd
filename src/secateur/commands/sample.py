"""`secateur sample`: draw images."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..base.console import progress, say
from ..base.distributed import one_process, process_count, process_index, wait_for_everyone
from ..base.errors import ModelError, SecateurError, require
from ..base.files import atomic_file, check_folder
from ..base.fingerprint import fingerprint
from ..base.rows import FileRows
from ..base.rules import Count, Seed, checked
from ..data.autoencoder import latent_space
from ..data.conditions import label_conditions, null_conditions
from ..data.text import open_text_encoder
from ..io.locate import Component
from ..io.pipeline import Loaded
from ..models.conditions import Conditions, rows
from ..models.network import class_count, device_of, input_shape, takes_text
from ..process.named import ProcessName
from ..process.samplers import check_sampler
from ..process.sampling import generate_batch
from ..reporting.grids import image_grid, to_image
from ..runs.folder import run_folder
from ..runs.subject import NO_PIPELINE, decoder, inputs_of, open_model
from .options import Model

MOST_COLUMNS = 20
MOST_PIXELS = 2 * 89_478_485  # of a grid: beyond, Pillow takes a picture for an attack


@checked
def sample(
    model: Model,
    *,
    out: Path,
    num_images: Count = 64,
    num_inference_steps: Count = 50,
    scheduler: str | None = None,
    class_label: int | None = None,
    prompt: tuple[str, ...] = (),
    guidance_scale: float = 1.0,
    seed: Seed = 0,
    batch_size: Count = 128,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
) -> Path:
    """Draw images into one PNG grid, or into a folder of PNG files; image i depends on seed + i only.

    A folder that was begun goes on where it stopped when the same command is given again, and torchrun shares it out
    over processes. Images of a class-conditional model lie in one sub-folder per class, as --data takes them.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        out: PNG file to write, or a folder.
        num_images: how many.
        num_inference_steps: sampler steps.
        scheduler: class name of a diffusers scheduler, such as DPMSolverMultistepScheduler, EulerDiscreteScheduler or
            UniPCMultistepScheduler; the default is the process's own deterministic one.
        class_label: draw this class; the default goes through all of a class-conditional model's classes.
        prompt: one or more texts that take turns, for a text-conditional pipeline.
        guidance_scale: classifier-free guidance; 1 is off.
        seed: seed of the first image.
        batch_size: images at once; does not change them.
        component: which part of a pipeline, unet or transformer; the default takes the one that is there.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
    """
    out = Path(out)
    grid = out.suffix.lower() == ".png"
    if grid:
        one_process("sample of a grid")
        require(not out.is_dir(), f"{out} is a folder; choose another name for the file")
        check_folder(out.parent)
    loaded, _ = open_model(model, process, device, component)
    channels = input_shape(loaded.model)[0]
    if loaded.vae is None and channels not in (1, 3):
        raise ModelError(f"the model makes {channels}-channel latents and no VAE is beside it; give its whole pipeline")
    check_sampler(loaded.process, scheduler, num_inference_steps)
    _check_room(out, num_images, loaded, grid)
    classes = class_count(loaded.model)
    labels = _labels(classes, class_label, num_images)
    if takes_text(loaded.model):
        conditions, null = _told(loaded, prompt)
    else:
        require(not prompt, f"{model} takes no text: it has no use for a prompt")
        conditions, null = label_conditions(labels), null_conditions(loaded.model)
    require(
        guidance_scale == 1 or bool(null), "the model has no null condition to guide away from; use guidance_scale 1"
    )
    decode, turn = decoder(loaded), len(prompt) or num_images

    def draw(indices: Sequence[int]) -> Tensor:
        return generate_batch(
            loaded.model,
            loaded.process,
            [seed + index for index in indices],
            input_shape(loaded.model),
            rows(conditions, torch.tensor(indices) % turn),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            null=null,
            scheduler=scheduler,
            decode=decode,
        ).cpu()

    settings = {
        "command": "sample",
        "model": model,
        "num_inference_steps": num_inference_steps,
        "scheduler": scheduler,
        "class_label": class_label,
        "prompt": prompt,
        "component": component,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "process": process,
    }
    inputs = inputs_of(model=loaded)
    if grid:
        key = fingerprint([settings, inputs, num_images, batch_size])
        by_class = classes if class_label is None and classes and classes <= MOST_COLUMNS else None
        columns = by_class or max(1, round(num_images**0.5))
        _write_grid(out, columns, FileRows(num_images, batch_size, out.with_name(f".{out.name}.parts") / key), draw)
    else:
        with run_folder(out, settings, inputs):
            wait_for_everyone(on_cpu=device_of(loaded.model).type == "cpu")  # all stop where the folder is refused
            _write_files([_file(out, index, labels) for index in range(num_images)], batch_size, draw)
    say(f"images  {out}")
    return out


def _check_room(out: Path, count: int, loaded: Loaded, grid: bool) -> None:
    """Refuse more images than the disk takes as files, or than programs open as one."""
    if grid:
        _, height, width = input_shape(loaded.model)
        if loaded.vae is not None:
            _, height, width = latent_space(loaded.vae).image_shape(input_shape(loaded.model))
        most = MOST_PIXELS // (height * width)
        require(count <= most, f"num_images is {count}; a grid takes {most} of this size, so give a folder as --out")
        return
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    disk, done = os.statvfs(there), sum(1 for _ in out.rglob("*.png"))
    room = disk.f_bavail * disk.f_frsize // disk.f_bsize  # a file takes a block at least
    room = min(room, disk.f_favail) if disk.f_files else room  # some file systems count no files
    require(count <= room + done, f"num_images is {count}; the disk of {out} has room for {room} files")


def _labels(classes: int | None, chosen: int | None, count: int) -> list[int] | None:
    """The class of every image: the chosen one, or all in turn; None for a model without classes."""
    if chosen is None:
        return None if classes is None else [i % classes for i in range(count)]
    if classes is None:
        raise SecateurError(f"class_label is {chosen}, and the model has no classes; leave it out")
    require(0 <= chosen < classes, f"class_label is {chosen}; give 0 to {classes - 1}, one of the model's classes")
    return [chosen] * count


def _told(loaded: Loaded, prompts: tuple[str, ...]) -> tuple[Conditions, Conditions]:
    """Conditions of every prompt, and those of no prompt."""
    require(bool(prompts), 'the model takes text: give --prompt "what to draw"')
    if loaded.pipeline is None or loaded.vae is None:
        raise ModelError(NO_PIPELINE)
    _, height, width = latent_space(loaded.vae).image_shape(input_shape(loaded.model))
    encoder = open_text_encoder(loaded.pipeline, (height, width), device_of(loaded.model))
    return encoder(prompts), encoder.null()


def _write_grid(out: Path, columns: int, parts: FileRows, draw: Callable[[Sequence[int]], Tensor]) -> None:
    """One PNG of all images; what was drawn waits beside it, for a run that is stopped, until it is written."""
    parts.fill(lambda indices: {"images": draw(indices)}, "sampling")
    images = parts.columns(["images"])["images"]
    with atomic_file(out) as temporary:
        image_grid(images, columns).save(temporary, format="PNG")
    shutil.rmtree(parts.folder.parent)


def _file(folder: Path, index: int, labels: list[int] | None) -> Path:
    return (folder if labels is None else folder / str(labels[index])) / f"{index:06d}.png"


def _write_files(files: Sequence[Path], batch_size: int, draw: Callable[[Sequence[int]], Tensor]) -> None:
    """One PNG per image: this process's share of those that are not there yet."""
    mine = range(process_index(), len(files), process_count())
    missing = [index for index in mine if not files[index].is_file()]
    with progress("sampling", len(mine), start=len(mine) - len(missing)) as advance:
        for start in range(0, len(missing), batch_size):
            indices = missing[start : start + batch_size]
            for index, image in zip(indices, draw(indices), strict=True):
                with atomic_file(files[index]) as temporary:
                    to_image(image).save(temporary, format="PNG")
            advance(len(indices), "")
