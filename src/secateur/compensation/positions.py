"""Rows of a layer's input and output: a position (pixel or token) of a tuple is one row.

B tuples of a micro-batch, P positions of a tuple and R chosen ones, K columns, M outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.devices import in_float64
from ..base.seeds import Purpose, stream
from .counterparts import Projection
from .tuples import POSITIONS


def choose_positions(numbers: Sequence[int], positions: int, taken: int, layer: int, seed: int) -> Tensor:
    """The positions (B, R) to use of each tuple for the layer with this index, R at most `taken`; they depend on the
    seed and the tuple's number alone."""
    if taken >= positions:
        return torch.arange(positions).expand(len(numbers), -1)
    drawn = []
    for number in numbers:
        generator = stream(seed, Purpose.COMPENSATION, step=layer, index=number, part=POSITIONS)
        drawn.append(torch.from_numpy(generator.permutation(positions)[:taken]))
    return torch.stack(drawn)


def by_position(values: Tensor, is_image: bool) -> Tensor:
    """An image (B, C, H, W) or tokens (B, ..., C) as (B, P, C)."""
    if is_image:
        return values.flatten(2).mT
    return values.reshape(len(values), -1, values.shape[-1])


def chosen(values_BPC: Tensor, at_BR: Tensor) -> Tensor:
    """The rows at the chosen positions, (B, R, C), at least float32."""
    at = at_BR.to(values_BPC.device)
    picked = values_BPC[torch.arange(len(at), device=at.device)[:, None], at]
    return picked if picked.dtype == torch.float64 else picked.float()


def input_rows(layer: Projection, x: Tensor, at_BR: Tensor) -> Tensor:
    """The inputs that the layer's weights multiply at the chosen positions of its output, (B, R, K).

    For a convolution, the patches under its kernel, in the order row, column, channel.
    """
    if isinstance(layer, nn.Linear):
        return chosen(by_position(x, False), at_BR)
    (height, width), (down, right), (tall, wide) = layer.kernel_size, layer.stride, layer.dilation
    top, left = padding_of(layer)
    padded = F.pad(x, (left, left, top, top)).permute(0, 2, 3, 1)
    columns = output_size(layer, x)[1]
    at = at_BR.to(x.device)
    rows, columns_at = at // columns * down, at % columns * right
    tuples = torch.arange(len(x), device=x.device)[:, None]
    patches = [padded[tuples, rows + i * tall, columns_at + j * wide] for i in range(height) for j in range(width)]
    joined = torch.cat(patches, dim=-1)
    return joined if joined.dtype == torch.float64 else joined.float()


def weights_by_row(layer: Projection) -> Tensor:
    """The layer's weights in the order of `input_rows`, (K, M), the bias's row last where it has one."""
    weight = layer.weight.flatten(1) if layer.weight.ndim == 2 else layer.weight.permute(0, 2, 3, 1).flatten(1)
    return weight.T if layer.bias is None else torch.cat([weight.T, layer.bias[None]])


def change_weights(layer: Projection, change_KM: Tensor) -> None:
    """Add `change_KM`, in the order of `weights_by_row`, to the weights, in their own dtype."""
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.copy_(in_float64(layer.bias) + change_KM[-1])
            change_KM = change_KM[:-1]
        weight = layer.weight
        if weight.ndim == 4:
            outputs, inputs, height, width = weight.shape
            change = change_KM.T.reshape(outputs, height, width, inputs).permute(0, 3, 1, 2)
        else:
            change = change_KM.T
        weight.copy_(in_float64(weight) + change)


def padding_of(layer: nn.Conv2d) -> tuple[int, int]:
    """Rows above and below, and columns at the left and right, of zeros."""
    assert not isinstance(layer.padding, str)
    height, width = layer.padding
    return height, width


def output_size(layer: nn.Conv2d, x: Tensor) -> tuple[int, int]:
    """Height and width of the convolution of x (B, C, H, W)."""
    height, width = (
        (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, padding, dilation, kernel, stride in zip(
            x.shape[2:], padding_of(layer), layer.dilation, layer.kernel_size, layer.stride, strict=True
        )
    )
    return height, width
