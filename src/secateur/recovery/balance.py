"""How strongly each term of a loss pulls: gradient norms, and a weight that lets one term not outweigh the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .objectives import JACOBIAN


def gradient_norms(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """Norms (len(terms) + 1,) of the gradients of each weighted term, and of all but the Jacobian one together.

    The graph is kept, and no `.grad` is touched.
    """
    weighted = {name: weights[name] * value for name, value in terms.items()}
    others = torch.stack([value for name, value in weighted.items() if name != JACOBIAN]).sum()
    return torch.stack([_gradient_norm(value, parameters) for value in (*weighted.values(), others)])


def _gradient_norm(value: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    gradients = torch.autograd.grad(value, list(parameters), retain_graph=True, allow_unused=True)
    lengths = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return torch.stack(lengths).norm()
