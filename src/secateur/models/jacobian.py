"""The response of a network's output to small changes of its noisy input, by random projections.

J is the derivative of the raw output (epsilon, v, sample or velocity alike) with respect to the noisy input x_t.
Conditions are fixed, and there is no guidance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .conditions import Conditions
from .predict import predict

Projection = Literal["vjp", "jvp"]
ANY_ATTENTION = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
_LAYER_NORM = F.layer_norm


def unit_directions(normals: Sequence[Tensor]) -> list[Tensor]:
    """Each sample of each tensor (B, ...) scaled to length 1: uniform on the sphere."""
    return [v / v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1)) for v in normals]


def project(
    model: nn.Module,
    x_BCHW: Tensor,
    timesteps_B: Tensor,
    conditions: Conditions,
    directions: Sequence[Tensor],
    projection: Projection = "vjp",
    create_graph: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """The prediction (B, C, H, W) at x_t, and J'v (as x_t) or Jv (as the prediction) for each of `directions`.

    One pass serves the prediction and all projections. Samples do not mix: J is block diagonal over the batch.
    """
    with torch.enable_grad():
        x = x_BCHW.detach().requires_grad_()
        prediction = predict(model, x, timesteps_B, conditions)
        if projection == "vjp":
            projections = _vjps(prediction, x, directions, create_graph)
        else:  # Jv is the derivative of u -> J'u along v; forward-mode AD fails in several layers of diffusers.
            u = torch.zeros_like(prediction, requires_grad=True)
            (transposed,) = _vjps(prediction, x, [u], create_graph=True)
            projections = _vjps(transposed, u, directions, create_graph)
    return (prediction if create_graph else prediction.detach()), projections


def _vjps(output: Tensor, x: Tensor, directions: Sequence[Tensor], create_graph: bool) -> list[Tensor]:
    products: list[Tensor] = []
    for left, v in zip(reversed(range(len(directions))), directions, strict=True):
        keep = create_graph or left > 0  # the last pass frees the graph
        products += torch.autograd.grad(output, x, v, create_graph=create_graph, retain_graph=keep)
    return products


def squared_lengths(projections: Sequence[Tensor]) -> Tensor:
    """||p||^2 of each sample, averaged over the directions, (B,), at least float32: the one-step growth v'J'Jv."""
    return torch.stack([exact(p).flatten(1).square().sum(1) for p in projections]).mean(0)


def exact(x: Tensor) -> Tensor:
    """`x` in float32, unless it is float64."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Parameters of `model` need no gradients inside the block, so passes keep no graph for them."""
    needing = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in needing:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in needing:
            parameter.requires_grad_(True)


@contextmanager
def any_attention() -> Iterator[None]:
    """Let attention use its fastest kernel inside a `higher_order` block."""
    with sdpa_kernel(ANY_ATTENTION):
        yield


@contextmanager
def higher_order(projection: Projection) -> Iterator[None]:
    """Use operations with correct higher-order derivatives, for `project` and the backward pass through it.

    The block must include the last backward pass, in which gradient checkpointing runs the layers again. Attention uses
    plain matrix products, since fused kernels have no second derivative. With jvp, layer norms are composed of plain
    operations: the third derivative of torch's own treats mean and deviation as constants (measured on 2.13).
    """
    before = F.layer_norm
    if projection == "jvp":
        F.layer_norm = _plain_layer_norm
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        F.layer_norm = before


def _plain_layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    with torch.no_grad():
        dtype = _LAYER_NORM(input, normalized_shape, weight, bias, eps).dtype  # by autocast too
    x, axes = exact(input), tuple(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    normalized = centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps)
    if weight is not None:
        normalized = normalized * weight
    if bias is not None:
        normalized = normalized + bias
    return normalized.to(dtype)
