"""How strongly each term of a loss pulls: gradient norms, and a weight that lets one term not outweigh the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .objectives import JACOBIAN

Gradients = dict[str, list[Tensor]]


def term_gradients(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], parameters: Sequence[nn.Parameter], scale: float = 1.0
) -> Gradients:
    """Gradient of each weighted term by every parameter, float32, times `scale`; no `.grad` is touched."""
    return {
        name: [gradient.float() for gradient in _gradient(scale * weights[name] * value, parameters)]
        for name, value in terms.items()
    }


def added(left: Gradients, right: Gradients) -> Gradients:
    """The sum of two sets of gradients of the same terms."""
    return {name: [one + other for one, other in zip(left[name], right[name], strict=True)] for name in left}


def gradient_norms(gradients: Gradients) -> dict[str, float]:
    """Norm of each term's gradient."""
    return {name: _norm(parts) for name, parts in gradients.items()}


def excess(gradients: Gradients) -> float | None:
    """How many times the Jacobian term's gradient is as long as that of the other terms together; None if one is 0."""
    others = [parts for name, parts in gradients.items() if name != JACOBIAN]
    together = _norm([torch.stack(found).sum(0) for found in zip(*others, strict=True)])
    own = _norm(gradients[JACOBIAN])
    return own / together if own > 0 and together > 0 else None


def _gradient(value: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, list(parameters), retain_graph=True, materialize_grads=True, allow_unused=True)


def _norm(parts: Sequence[Tensor]) -> float:
    return torch.stack([part.norm() for part in parts]).norm().item()
