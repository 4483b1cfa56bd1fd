"""`secateur sample`: draw images."""

from __future__ import annotations

from pathlib import Path

from ..errors import SecateurError, require
from ..files import atomic_file
from ..inputs import class_count, input_shape
from ..recovery.conditioning import label_conditions, null_conditions
from ..reporting import image_grid
from ..sampling import generate_images
from .common import Model, ProcessName, one_process, open_model, say

MOST_COLUMNS = 20


def sample(
    model: Model,
    *,
    out: Path,
    num_images: int = 64,
    num_inference_steps: int = 50,
    class_label: int | None = None,
    guidance_scale: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
    process: ProcessName = "auto",
    device: str = "auto",
) -> Path:
    """Draw images into one PNG grid; image i depends on seed + i only.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        out: PNG file to write.
        num_images: how many.
        num_inference_steps: sampler steps.
        class_label: draw this class; the default goes through all of a class-conditional model's classes.
        guidance_scale: classifier-free guidance; 1 is off.
        seed: seed of the first image.
        batch_size: images at once; does not change them.
        process: how the model was trained, when no scheduler config lies beside it.
        device: auto, cpu, cuda, mps ...
    """
    one_process("sample")
    require(num_images >= 1, f"num_images is {num_images}; give at least 1")
    loaded, _ = open_model(model, process, device)
    classes = class_count(loaded.model)
    if class_label is not None and (classes is None or not 0 <= class_label < classes):
        raise SecateurError(f"class_label {class_label} is out of range: the model has {classes or 'no'} classes")
    labels = None
    if classes is not None:
        labels = [class_label if class_label is not None else i % classes for i in range(num_images)]
    images = generate_images(
        loaded.model,
        loaded.process,
        range(seed, seed + num_images),
        input_shape(loaded.model),
        label_conditions(labels),
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        null=null_conditions(loaded.model),
        batch_size=batch_size,
    )
    rows_of_classes = class_label is None and classes is not None and classes <= MOST_COLUMNS
    columns = classes if rows_of_classes and classes else max(1, round(num_images**0.5))
    with atomic_file(out) as temporary:
        image_grid(images, columns).save(temporary, format="PNG")
    say(f"images  {out}")
    return Path(out)
