"""Refitting a layer whose output is normalized, then gated and added to a residual stream.

Sandwich norms, as in Lumina-Image 2.0 (Qin et al. 2025) and Z-Image, normalize what a block adds: with p = W h + b and
its root mean square rho over the channels (RMSNorm: Zhang & Sennrich 2019, equation 4), channel c of the stream
receives g_c p_c / rho. For a given rho that is the form of `gated`, with rows h / rho. rho follows the weights, so the
change is found in steps, each solved with the rho of the one before and halved until the error falls.

Since no weights make the addition longer, the norm's own weights are refitted with them: its factor k_c of each channel
is the one that leaves the least error, pulled towards 1 by the ridge. Weights and factors take turns. Where that ends
depends on which come first, so both orders are tried.

I images of R rows each, K columns (the ones last where there is a bias), M output channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..base.devices import in_float64, where_float64
from ..structure import first_argument
from .gated import Total, alone, gated_change

STEPS = 2  # of weights and factors in turn; further ones change the error of models little
HALVINGS = 6
SAME = 1e-2  # largest difference of a norm of ones from its weights, as a share of them: its epsilon, half precision


def normed(output_M: Tensor) -> Tensor:
    """The output divided by its root mean square over the channels, the last axis; zero where it is zero."""
    return output_M * _inverse_size(output_M)


def normed_change(
    x_IRK: Tensor,
    output_IRM: Tensor,
    gate_IM: Tensor,
    error_IRM: Tensor,
    ridge: float,
    bias: bool,
    rescale: bool = True,
    total: Total = alone,
) -> tuple[Tensor, Tensor, Tensor]:
    """The change (K, M) of the weights, the factors (M,) of the norm's weights, and the error (I, R, M) that is left.

    `output_IRM` is the layer's present output, and `error_IRM` what the stream lacks. Without `rescale`, the factors
    are ones.
    """
    found = []
    for factors_first in (True, False) if rescale else (False,):
        search = _Search(x_IRK, output_IRM, gate_IM, error_IRM, ridge, bias, total)
        if factors_first:
            search.factors_step()
        for _ in range(STEPS):
            search.weights_step()
            if rescale:
                search.factors_step()
        found.append(search)
    best = min(found, key=lambda search: search.least)
    return best.change, best.factors, best.error


class _Search:
    """The changes so far, and the error that they leave."""

    def __init__(
        self, x: Tensor, output: Tensor, gate: Tensor, error: Tensor, ridge: float, bias: bool, total: Total
    ) -> None:
        self.x, self.output, self.gate, self.error = x, output, gate, error
        self.ridge, self.bias, self.total = ridge, bias, total
        self.change = torch.zeros(x.shape[2], gate.shape[1], dtype=torch.float64, device=where_float64(x.device))
        self.factors = torch.ones_like(gate[0])
        self.wanted = error + self.added(output)
        self.least = self.squares(error)

    def added(self, output: Tensor) -> Tensor:
        """What the stream receives for an output of the layer."""
        return self.factors * self.gate[:, None] * normed(output)

    def squares(self, error: Tensor) -> float:
        return float(self.total(in_float64(error).square().sum()))

    def weights_step(self) -> None:
        """Solve with the present size of the outputs; halve the step until the error falls."""
        rows, gate = _inverse_size(self.output) * self.x, self.factors * self.gate
        step = gated_change(rows, gate, self.error, self.ridge, self.bias, self.total)
        moved = self.x @ step.to(self.x)
        for share in (0.5**halving for halving in range(HALVINGS)):
            output = self.output + share * moved
            left = self.wanted - self.added(output)
            if (error := self.squares(left)) < self.least:
                self.change, self.output, self.error, self.least = self.change + share * step, output, left, error
                return

    def factors_step(self) -> None:
        """The best factor of every channel with the present weights."""
        added = self.added(self.output)
        size, lacking = (self.total(values.sum((0, 1))) for values in (added.square(), added * self.error))
        self.factors = self.factors * (1 + torch.where(size > 0, lacking / ((1 + self.ridge) * size), 0))
        self.error = self.wanted - self.added(self.output)
        self.least = self.squares(self.error)


@contextmanager
def norms_behind(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    """Collect the norms that are given the output of one of `layers` and nothing else, by the layer's name, in calls
    inside the with-block."""
    outputs: dict[str, Any] = {}
    norms: dict[str, nn.Module] = {}
    calls: Counter[nn.Module] = Counter()

    def remember(name: str) -> Callable[..., None]:
        return lambda module, args, output: outputs.__setitem__(name, output)

    def compare(norm: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        calls[norm] += 1
        given = first_argument(args, kwargs)
        norms.update({name: norm for name, output in outputs.items() if output is given})

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(remember(name)))
        for module in model.modules():
            if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim == 1:
                hooks.enter_context(module.register_forward_pre_hook(compare, with_kwargs=True))
        yield norms
    for name in [name for name, norm in norms.items() if calls[norm] > 1]:
        del norms[name]


def scales_only(norm: nn.Module, like_M: Tensor) -> bool:
    """Whether `norm` multiplies normed channels by its weights, so that factors of the weights are factors of it."""
    weight = getattr(norm, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.shape != like_M.shape[-1:]:
        return False
    found = norm(torch.ones_like(like_M))
    return isinstance(found, Tensor) and bool(
        (found - weight).norm() <= SAME * weight.norm() * found[..., 0].numel() ** 0.5
    )


def _inverse_size(output_M: Tensor) -> Tensor:
    return output_M.square().mean(-1, keepdim=True).clamp(min=torch.finfo(output_M.dtype).tiny).rsqrt()
