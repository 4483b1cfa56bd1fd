"""The state of an 8-bit optimizer (torchao's) as plain tensors and back, for cuts and checkpoints.

Its tensors hold codes and a scale for every 256 entries in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SMALLEST = 4096  # entries of a tensor that is quantized; smaller ones stay plain
BLOCK = 256
PIECES = ("codes", "scale")


def is_quantized(value: Any) -> bool:
    """Whether `value` is a tensor of codes."""
    return isinstance(value, Tensor) and hasattr(value, "codes") and hasattr(value, "dequantize")


def plain(value: Tensor) -> Tensor:
    """The values of `value` in float32 if it holds codes, else itself."""
    return value.dequantize().float() if is_quantized(value) else value


def pieces(name: str, value: Tensor) -> dict[str, Tensor]:
    """`value` as plain tensors of the same bits, by names that begin with `name`."""
    if not is_quantized(value):
        return {name: value}
    return {f"{name}.{piece}": getattr(value, piece) for piece in PIECES}


def of_pieces(name: str, found: Mapping[str, Tensor], signed: bool) -> Tensor:
    """The inverse of `pieces`."""
    if name in found:
        return found[name]
    codes, scale = (found[f"{name}.{piece}"] for piece in PIECES)
    whole: Any = quantized(torch.zeros(codes.shape, device=codes.device), signed)
    whole.codes.copy_(codes)
    whole.scale.copy_(scale)
    return whole


def quantized(values: Tensor, signed: bool) -> Tensor:
    """`values` as codes, if there are enough of them."""
    if values.numel() < SMALLEST or values.numel() % BLOCK:
        return values
    from torchao.optim.subclass_8bit import OptimState8bit

    codes = OptimState8bit.zeros(values.shape, signed, BLOCK, values.device, dtype=torch.float32)
    return codes.copy_(values)
