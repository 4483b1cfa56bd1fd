"""`secateur sample`: draw images."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..conditions import rows
from ..errors import SecateurError, require
from ..evaluation.rows import Rows, fingerprint, key_of
from ..files import atomic_file
from ..inputs import class_count, device_of, input_shape
from ..processes import process_count, process_index, wait_for_everyone
from ..progress import progress
from ..recovery.conditioning import label_conditions, null_conditions
from ..reporting.grids import image_grid, to_image
from ..samplers import check_sampler
from ..sampling import generate_batch
from .common import Model, ProcessName, one_process, open_model, say, start_run

MOST_COLUMNS = 20


def sample(
    model: Model,
    *,
    out: Path,
    num_images: int = 64,
    num_inference_steps: int = 50,
    scheduler: str | None = None,
    class_label: int | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
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
        guidance_scale: classifier-free guidance; 1 is off.
        seed: seed of the first image.
        batch_size: images at once; does not change them.
        process: how the model was trained, when no scheduler config lies beside it.
        device: auto, cpu, cuda, mps ...
    """
    out = Path(out)
    grid = out.suffix.lower() == ".png"
    if grid:
        one_process("sample of a grid")
    for name, value, least in (("num_images", num_images, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        require(value >= least, f"{name} is {value}; give at least {least}")
    loaded, _ = open_model(model, process, device)
    check_sampler(loaded.process, scheduler, num_inference_steps)
    classes = class_count(loaded.model)
    if class_label is not None and (classes is None or not 0 <= class_label < classes):
        raise SecateurError(f"class_label {class_label} is out of range: the model has {classes or 'no'} classes")
    require(
        guidance_scale == 1 or bool(null_conditions(loaded.model)),
        "the model has no null condition to guide away from; use guidance_scale 1",
    )
    labels = None
    if classes is not None:
        labels = [class_label if class_label is not None else i % classes for i in range(num_images)]
    conditions = label_conditions(labels)

    def draw(indices: Sequence[int]) -> Tensor:
        return generate_batch(
            loaded.model,
            loaded.process,
            [seed + index for index in indices],
            input_shape(loaded.model),
            rows(conditions, torch.tensor(indices)),
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            null=null_conditions(loaded.model),
            scheduler=scheduler,
        ).cpu()

    settings = {
        "command": "sample",
        "model": model,
        "num_inference_steps": num_inference_steps,
        "scheduler": scheduler,
        "class_label": class_label,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "process": process,
    }
    if grid:
        key = key_of(settings, num_images, batch_size, fingerprint(loaded.model, loaded.process))
        rows_of_classes = class_label is None and classes is not None and classes <= MOST_COLUMNS
        columns = classes if rows_of_classes and classes else max(1, round(num_images**0.5))
        _write_grid(out, columns, Rows(out.with_name(f".{out.name}.parts") / key, num_images, batch_size), draw)
    else:
        start_run(out, settings)
        wait_for_everyone(on_cpu=device_of(loaded.model).type == "cpu")  # all stop where the folder is refused
        _write_files(out, [_file(out, index, labels) for index in range(num_images)], batch_size, draw)
    say(f"images  {out}")
    return out


def _write_grid(out: Path, columns: int, parts: Rows, draw: Callable[[Sequence[int]], Tensor]) -> None:
    """One PNG of all images; what was drawn waits beside it, for a run that is stopped, until it is written."""
    parts.measure(lambda indices: {"images": draw(indices)}, "sampling")
    images = parts.read(["images"])["images"]
    with atomic_file(out) as temporary:
        image_grid(images, columns).save(temporary, format="PNG")
    shutil.rmtree(parts.folder.parent)


def _file(folder: Path, index: int, labels: list[int] | None) -> Path:
    return (folder if labels is None else folder / str(labels[index])) / f"{index:06d}.png"


def _write_files(folder: Path, files: Sequence[Path], batch_size: int, draw: Callable[[Sequence[int]], Tensor]) -> None:
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
