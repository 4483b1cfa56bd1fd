"""Latents as tokens of 2 x 2 pixels stacked in the channels: N = h w / 4 tokens of a latent (C, h, w).

Used by Flux and later models (Chroma, Qwen-Image).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import ModelError
from .family import Shape, Size, config_of, denoised_channels, sides

PATCH = 2  # pixels per token, along each side
SAMPLE_SIZE = 128  # latents of 1024 pixels, if the config does not say


def pack(x_BCHW: Tensor) -> Tensor:
    """Tokens (B, N, 4 C), row by row, the channels of a token ordered as (C, 2, 2)."""
    batch_size, channels, height, width = x_BCHW.shape
    patches = x_BCHW.reshape(batch_size, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch_size, -1, channels * PATCH**2)


def unpack(x_BNC: Tensor, size: Size) -> Tensor:
    """The inverse of `pack`: latents (B, C, *size)."""
    height, width = size
    patches = x_BNC.reshape(len(x_BNC), height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(x_BNC), -1, height, width)


def positions(size: Size, device: torch.device | None = None) -> Tensor:
    """(0, row, column) of every token of latents of `size`, (N, 3)."""
    rows, columns = (torch.arange(length // PATCH, device=device) for length in size)
    return torch.cartesian_prod(torch.zeros(1, dtype=torch.int64, device=device), rows, columns)


def size_of(x_BCHW: Tensor) -> Size:
    """Height and width of a batch of latents."""
    return x_BCHW.shape[2], x_BCHW.shape[3]


def as_long_as(guided_BCHW: Tensor, conditioned_BCHW: Tensor) -> Tensor:
    """The guided prediction, with every token scaled to its norm without guidance."""
    guided_BNC, conditioned_BNC = pack(guided_BCHW), pack(conditioned_BCHW)
    ratio_BN1 = conditioned_BNC.norm(dim=-1, keepdim=True) / guided_BNC.norm(dim=-1, keepdim=True)
    return unpack(guided_BNC * ratio_BN1, size_of(guided_BCHW))


def unpacked_prediction(output_BNC: Tensor, x_BCHW: Tensor) -> Tensor:
    """The output of a network of packed latents, unpacked."""
    return denoised_channels(unpack(output_BNC, size_of(x_BCHW)), x_BCHW)


def packed_shape(model: nn.Module) -> Shape:
    """The shape of the latents before they are packed.

    Raises:
        ModelError: the config says a size that cannot be packed.
    """
    config: Any = config_of(model)
    height, width = sides(config.get("sample_size") or SAMPLE_SIZE)
    if height % PATCH or width % PATCH:
        name = type(model).__name__.removesuffix("Transformer2DModel")
        raise ModelError(f"the config's sample_size is {config['sample_size']}; {name} takes latents of an even size")
    return config["in_channels"] // PATCH**2, height, width
