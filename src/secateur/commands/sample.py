"""`secateur sample`: draw images."""

from __future__ import annotations

from pathlib import Path

import torch

from ..autoencoder import latent_space
from ..checkpoint import Loaded
from ..conditions import Conditions, rows
from ..encoding import takes_text
from ..errors import ModelError, SecateurError, require
from ..files import atomic_file
from ..inputs import class_count, device_of, input_shape
from ..prompts import open_text_encoder
from ..recovery.conditioning import label_conditions, null_conditions
from ..reporting import image_grid
from ..sampling import generate_images
from .common import NO_PIPELINE, Component, Model, ProcessName, decoder, one_process, open_model, say

MOST_COLUMNS = 20


def sample(
    model: Model,
    *,
    out: Path,
    num_images: int = 64,
    num_inference_steps: int = 50,
    class_label: int | None = None,
    prompt: tuple[str, ...] = (),
    guidance_scale: float = 1.0,
    seed: int = 0,
    batch_size: int = 128,
    component: Component | None = None,
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
        prompt: one or more texts that take turns, for a text-conditional pipeline.
        guidance_scale: classifier-free guidance; 1 is off.
        seed: seed of the first image.
        batch_size: images at once; does not change them.
        component: which part of a pipeline, unet or transformer; the default takes the one that is there.
        process: how the model was trained, when no scheduler config lies beside it.
        device: auto, cpu, cuda, mps ...
    """
    one_process("sample")
    require(num_images >= 1, f"num_images is {num_images}; give at least 1")
    loaded, _ = open_model(model, process, device, component)
    channels = input_shape(loaded.model)[0]
    if loaded.vae is None and channels not in (1, 3):
        raise ModelError(f"the model makes {channels}-channel latents and no VAE is beside it; give its whole pipeline")
    classes = class_count(loaded.model)
    if class_label is not None and (classes is None or not 0 <= class_label < classes):
        raise SecateurError(f"class_label {class_label} is out of range: the model has {classes or 'no'} classes")
    if takes_text(loaded.model):
        conditions, null = _told(loaded, prompt, num_images)
    else:
        require(not prompt, f"{model} takes no text: it has no use for a prompt")
        labels = None
        if classes is not None:
            labels = [class_label if class_label is not None else i % classes for i in range(num_images)]
        conditions, null = label_conditions(labels), null_conditions(loaded.model)
    images = generate_images(
        loaded.model,
        loaded.process,
        range(seed, seed + num_images),
        input_shape(loaded.model),
        conditions,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        null=null,
        batch_size=batch_size,
        decode=decoder(loaded),
    )
    rows_of_classes = class_label is None and classes is not None and classes <= MOST_COLUMNS
    columns = classes if rows_of_classes and classes else max(1, round(num_images**0.5))
    with atomic_file(out) as temporary:
        image_grid(images, columns).save(temporary, format="PNG")
    say(f"images  {out}")
    return Path(out)


def _told(loaded: Loaded, prompts: tuple[str, ...], count: int) -> tuple[Conditions, Conditions]:
    """Conditions of `count` samples, prompts in turn, and those of no prompt."""
    require(bool(prompts), 'the model takes text: give --prompt "what to draw"')
    if loaded.pipeline is None or loaded.vae is None:
        raise ModelError(NO_PIPELINE)
    _, height, width = latent_space(loaded.vae).image_shape(input_shape(loaded.model))
    encoder = open_text_encoder(loaded.pipeline, (height, width), device_of(loaded.model))
    return rows(encoder(prompts), torch.arange(count) % len(prompts)), encoder.null()
