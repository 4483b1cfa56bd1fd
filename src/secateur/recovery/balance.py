"""Gradients of single loss terms over a whole batch, computed one micro-batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..models.jacobian import exact


def summed_gradient(values: Iterable[Tensor], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradient of the sum of `values` by every parameter, at least float32; no `.grad` is touched.

    Values are taken one after the other, so that only one graph is in memory.
    """
    total = [torch.zeros_like(exact(parameter)) for parameter in parameters]
    for value in values:
        found = torch.autograd.grad(value, list(parameters), allow_unused=True)
        for place, gradient in zip(total, found, strict=True):
            if gradient is not None:
                place += gradient
    return total


def norm(gradient: Sequence[Tensor]) -> float:
    """Norm of a gradient given as a list of tensors."""
    return torch.stack([part.norm() for part in gradient]).norm().item()
