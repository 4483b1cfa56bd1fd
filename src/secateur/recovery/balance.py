"""How strongly each term of a loss pulls: its gradient over a whole batch, with no more than one held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..models.jacobian import exact


def summed_gradient(values: Iterable[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradient of the sum of `values` by every parameter, at least float32; no `.grad` is touched.

    One value is asked for after the other, so that the graph of one is held at a time.
    """
    total = [torch.zeros_like(exact(parameter)) for parameter in parameters]
    for value in values:
        found = torch.autograd.grad(value, list(parameters), allow_unused=True)
        for place, gradient in zip(total, found, strict=True):
            if gradient is not None:
                place += gradient
    return total


def norm(gradient: Sequence[Tensor]) -> float:
    """Length of a gradient in parts."""
    return torch.stack([part.norm() for part in gradient]).norm().item()
