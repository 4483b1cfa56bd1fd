"""`secateur sample`: draw images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

import secateur

from ..base.console import say
from .options import Model


def sample(
    on: Model,
    *,
    out: Path,
    num_images: int = 64,
    num_inference_steps: int = 50,
    scheduler: str | None = None,
    class_label: int | None = None,
    prompt: tuple[str, ...] = (),
    guidance_scale: Annotated[
        float | None, tyro.conf.arg(help_behavior_hint="(default: the pipeline's own, or 1)")
    ] = None,
    guidance_channels: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    bits: Literal[8, 16] = 8,
) -> None:
    """Draw images into one picture, or into a folder of PNG files; image i depends on the seed and i only.

    Run the same command again to resume a folder; torchrun divides the images between processes. Images of a
    class-conditional model lie in one sub-folder per class, as --data takes them.

    Args:
        on: the model.
        out: picture to write (.png, .jpg, .webp), or a folder.
        num_images: number of images.
        num_inference_steps: sampler steps.
        scheduler: class name of a diffusers scheduler, such as DPMSolverMultistepScheduler, EulerDiscreteScheduler or
            UniPCMultistepScheduler; the default is the process's own deterministic one.
        class_label: draw this class; by default, all classes of a class-conditional model in turn.
        prompt: one or more texts, used in turn, for a text-conditional pipeline.
        guidance_scale: classifier-free guidance; 1 is off.
        guidance_channels: number of output channels that are guided, by default all; the original samplers of DiT and
            SiT guide 3.
        seed: seed of the images.
        batch_size: images drawn at once; does not change them.
        bits: of a pixel in a folder of PNG files; 16 for models of grey images whose data had them.
    """
    secateur.sample(
        on.subject(),
        out=out,
        num_images=num_images,
        num_inference_steps=num_inference_steps,
        scheduler=scheduler,
        class_label=class_label,
        prompt=prompt,
        guidance_scale=guidance_scale,
        guidance_channels=guidance_channels,
        seed=seed,
        batch_size=batch_size,
        bits=bits,
    )
    say(f"images  {out}")
