"""A loss, its gradient and the product of its Hessian with the gradient, by differentiating twice or by differences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..base.shards import reshard, whole
from ..structure.precision import full_precision
from .gradients import differentiable, stream_gradients

Parameters = Mapping[str, Tensor]
Loss = Callable[[Parameters], Tensor]
Weights = Mapping[nn.Parameter, Tensor]

# The step of the finite difference, as a share of the norm of the weights, before the factor of the cube root of the
# precision, which balances rounding against the third derivative. It is small, since networks are nonlinear on a far
# smaller scale than the norm of their weights.
RELATIVE_STEP = 0.01

HessianProduct = Literal["exact", "finite-difference", "streamed"]


@dataclass(frozen=True)
class LocalGeometry:
    """A loss L, (), its gradient g, and its Hessian times that gradient, H g, by parameter name."""

    loss: Tensor
    gradient: Parameters
    product: Parameters


@full_precision()  # TF32 rounds factors by more than a step of the finite difference moves the gradients
def local_geometry(terms: Sequence[Loss], parameters: Parameters, method: HessianProduct = "exact") -> LocalGeometry:
    """Value, gradient g and H g of the sum of `terms` at `parameters`; only one term's graph is in memory at a time."""
    return _double_backward(terms, parameters) if method == "exact" else _central_difference(terms, parameters)


def loss_and_gradient(terms: Sequence[Loss], parameters: Parameters) -> tuple[Tensor, dict[str, Tensor]]:
    """Value and gradient of the sum of `terms`, one backward pass each."""
    losses: list[Tensor] = []
    gradient: dict[str, Tensor] = {}
    for term in terms:
        leaves = _leaves(parameters)
        with torch.enable_grad():
            loss = term(leaves)
        _add(gradient, _gradient(loss, leaves))
        losses.append(loss.detach())
    return torch.stack(losses).sum(), gradient


def _double_backward(terms: Sequence[Loss], parameters: Parameters) -> LocalGeometry:
    """H g as the gradient of <g, stop(g)>; fused attention kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        if len(terms) == 1:
            return _along(terms[0], parameters)
        # Every term is multiplied by the gradient of the whole loss, which therefore comes first.
        loss, gradient = loss_and_gradient(terms, parameters)
        product: dict[str, Tensor] = {}
        for term in terms:
            _add(product, _along(term, parameters, gradient).product)
        return LocalGeometry(loss, gradient, product)


@torch.enable_grad()
def _along(term: Loss, parameters: Parameters, direction: Parameters | None = None) -> LocalGeometry:
    """Value and gradient of one term, and its Hessian times `direction`, by default its own gradient."""
    leaves = _leaves(parameters)
    loss = term(leaves)
    graph = _gradient(loss, leaves, create_graph=True)
    gradient = {name: values.detach() for name, values in graph.items()}
    along = gradient if direction is None else direction
    slope = torch.stack([(graph[name] * along[name]).sum() for name in leaves]).sum()
    del graph
    return LocalGeometry(loss.detach(), gradient, _gradient(slope, leaves))


def _central_difference(terms: Sequence[Loss], parameters: Parameters) -> LocalGeometry:
    """H g from the gradients a step before and after along g."""
    loss, gradient = loss_and_gradient(terms, parameters)
    step = _step(parameters, gradient)
    before, after = (
        loss_and_gradient(terms, {name: values + signed * gradient[name] for name, values in parameters.items()})[1]
        for signed in (-step, step)
    )
    return LocalGeometry(loss, gradient, _slopes(before, after, step))


@full_precision()
def sharded_geometry(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> LocalGeometry:
    """As `local_geometry` by finite differences, for a sharded model; its weights move in place, and are restored."""
    parameters = dict(model.named_parameters())
    weights = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    names = {parameter: name for name, parameter in parameters.items()}

    def value_and_gradient(step: float = 0.0, along: Parameters = weights) -> tuple[Tensor, dict[str, Tensor]]:
        values: list[Tensor] = []
        gradient = {name: torch.zeros_like(value) for name, value in weights.items()}

        def recorded(loss: Callable[[], Tensor]) -> Tensor:
            value = loss()
            values.append(value.detach())
            return value

        def take(parameter: nn.Parameter, found: Tensor) -> None:
            gradient[names[parameter]] = found

        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name] + step * along[name])
        with differentiable(model):
            stream_gradients(model, [functools.partial(recorded, loss) for loss in losses], take)
        reshard(model)
        return torch.stack(values).sum(), gradient

    try:
        loss, gradient = value_and_gradient()
        step = _step(weights, gradient).item()  # shards do not multiply by a tensor
        before, after = (value_and_gradient(signed, gradient)[1] for signed in (-step, step))
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])
    return LocalGeometry(loss, gradient, _slopes(before, after, step))


@contextmanager
def movable(model: nn.Module) -> Iterator[Weights]:
    """Let weights be moved inside the block, where they have at least float32; yields their values, on the CPU, to
    which they return."""
    weights = {parameter: parameter.detach().to("cpu", copy=True) for parameter in model.parameters()}
    for parameter in weights:
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    try:
        yield weights
    finally:
        for parameter, value in weights.items():
            moved = parameter.data
            parameter.data = moved.copy_(value) if moved.dtype == value.dtype else value.to(moved.device)


@full_precision()
def kept_gradient(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> tuple[Tensor, Weights]:
    """Value () of the sum of `losses`, and its gradient, on the CPU, of the parameters that have one; `model` is inside
    `differentiable`."""
    values: list[Tensor] = []
    gradient: dict[nn.Parameter, Tensor] = {}

    def recorded(loss: Callable[[], Tensor]) -> Tensor:
        value = loss()
        values.append(value.detach())
        return value

    def keep(parameter: nn.Parameter, found: Tensor) -> None:
        gradient[parameter] = found.cpu()

    stream_gradients(model, [functools.partial(recorded, loss) for loss in losses], keep)
    return torch.stack(values).sum(), gradient


@full_precision()
def stream_products(
    model: nn.Module,
    losses: Sequence[Callable[[], Tensor]],
    weights: Weights,
    gradient: Weights,
    take: Callable[[nn.Parameter, Tensor], None],
) -> None:
    """Call `take` twice with each parameter, with parts of its H g that add up to it: its gradients a step before and
    after along `gradient`, by the distance.

    Args:
        model: inside `movable` and `differentiable`; its weights are moved.
        losses: functions that run `model` and return a scalar; their sum is differentiated.
        weights: from `movable`.
        gradient: from `kept_gradient`.
        take: called with each part as soon as it is known; none of them is kept.
    """
    step = _step({name: parameter.detach() for name, parameter in model.named_parameters()}, gradient).item()
    for signed in (-step, step):
        with torch.no_grad():
            for parameter, value in weights.items():
                parameter.copy_(value)
                if parameter in gradient:
                    parameter.add_(gradient[parameter].to(parameter.device), alpha=signed)
        stream_gradients(model, losses, lambda parameter, found: take(parameter, found.div_(2 * signed)))  # noqa: B023


def _step(parameters: Parameters, gradient: Mapping[Any, Tensor]) -> Tensor:
    """How far to move along the gradient, in its lengths, ()."""
    precision, length = torch.finfo(next(iter(parameters.values())).dtype).eps, norm_of(gradient)
    return RELATIVE_STEP * precision ** (1 / 3) * norm_of(parameters) / torch.where(length > 0, length, 1.0)


def _slopes(before: dict[str, Tensor], after: dict[str, Tensor], step: Tensor | float) -> Parameters:
    """The change of gradients from a step before to a step after, by their distance; frees both as it goes."""
    return {name: (after.pop(name) - before.pop(name)) / (2 * step) for name in list(after)}


def _leaves(parameters: Parameters) -> dict[str, Tensor]:
    """Copies of the parameters to differentiate by, frozen ones included; they share memory."""
    return {name: parameter.detach().requires_grad_() for name, parameter in parameters.items()}


def _gradient(value: Tensor, leaves: Parameters, create_graph: bool = False) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(leaves.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _add(total: dict[str, Tensor], more: Parameters) -> None:
    """Add `more` to `total`, of which no second copy is made."""
    for name, values in more.items():
        total[name] = total[name] + values if name in total else values


def norm_of(values: Mapping[Any, Tensor]) -> Tensor:
    """The norm of all values together, whole if they are shards."""
    return torch.stack([whole(value.square().sum()) for value in values.values()]).sum().sqrt()
