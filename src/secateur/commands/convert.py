"""`secateur convert`: convert an original DiT or SiT checkpoint to a diffusers pipeline folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import secateur

from ..base.console import say
from ..base.units import number_of
from ..io.original_dit import Kind


def convert(
    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")],
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")],
    *,
    kind: Kind | None = None,
    num_heads: int | None = None,
    vae: Path | None = None,
) -> None:
    """Convert an original DiT or SiT checkpoint to a diffusers pipeline folder that every other command takes.

    Args:
        checkpoint: .pt or .safetensors file: a state dict, or a training checkpoint, of which the EMA is taken.
        out: folder to write.
        kind: dit or sit, which the tensors do not show; by default, as the file name says.
        num_heads: attention heads, which no shape shows; by default, those of the published sizes.
        vae: folder of a diffusers VAE to copy into OUT, which then works on images; without it, on latents.
    """
    config = secateur.convert(checkpoint, out, kind=kind, num_heads=num_heads, vae=vae)
    heads, size = config["num_attention_heads"], config["sample_size"]
    blocks, width = number_of(config["num_layers"], "block"), heads * config["attention_head_dim"]
    say(f"model     {blocks} of width {width}, {number_of(heads, 'head')}")
    say(f"input     {config['in_channels']}x{size}x{size}, patches of {config['patch_size']}")
    say(f"classes   {config['num_embeds_ada_norm']}")
    say(f"pipeline  {out}")
