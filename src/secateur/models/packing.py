"""Latents as the tokens that Flux sees: 2 x 2 pixels side by side in the channels, and where each token stands.

N = h w / 4 tokens of a latent (C, h, w).
"""

from __future__ import annotations

import torch
from torch import Tensor

PATCH = 2  # pixels to a token, along each side


def pack(x_BCHW: Tensor) -> Tensor:
    """Tokens (B, N, 4 C), row by row, the channels of a token ordered as (C, 2, 2)."""
    batch_size, channels, height, width = x_BCHW.shape
    patches = x_BCHW.reshape(batch_size, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch_size, -1, channels * PATCH**2)


def unpack(x_BNC: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `pack`: latents (B, C, *size)."""
    height, width = size
    patches = x_BNC.reshape(len(x_BNC), height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(x_BNC), -1, height, width)


def positions(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(0, row, column) of every token of latents of `size`, (N, 3)."""
    rows, columns = (torch.arange(length // PATCH, device=device) for length in size)
    return torch.cartesian_prod(torch.zeros(1, dtype=torch.int64, device=device), rows, columns)
