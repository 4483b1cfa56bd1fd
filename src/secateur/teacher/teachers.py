"""What objectives ask of the dense model: its outputs, their response to a small change of the input, hidden states.

An objective takes a `Teacher`. `LiveTeacher` runs the network; a `Book` has the same answers, computed once and read
many times.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ..models.conditions import Conditions, rows
from ..models.jacobian import Projection, any_attention, frozen, project, squared_lengths
from ..models.predict import predict
from .draw import Draw
from .hidden import Call, Lineage, hidden_states


class Teacher(Protocol):
    """Answers for one micro-batch, as constants. `share` holds indices of samples; None means all."""

    @property
    def network(self) -> nn.Module | None:
        """The dense model in eval mode, if it is run live."""
        ...

    @property
    def dense(self) -> nn.Module | Lineage | None:
        """The dense model, or the lineage of its blocks; None if there are no hidden states."""
        ...

    def output(self, x_t: Tensor, draw: Draw, share: Tensor | None = None) -> Tensor:
        """Its predictions (B, C, H, W) at x_t."""
        ...

    def projections(
        self, x_t: Tensor, draw: Draw, share: Tensor, directions: Sequence[Tensor], projection: Projection
    ) -> tuple[Tensor, list[Tensor]]:
        """Its predictions, and J'v or Jv for each of `directions`."""
        ...

    def growth(
        self, x_t: Tensor, draw: Draw, share: Tensor, directions: Sequence[Tensor], projection: Projection
    ) -> tuple[Tensor, Tensor]:
        """Its predictions, and ||J'v||^2 or ||Jv||^2, the mean over `directions`, (B,)."""
        ...

    def hidden(self, x_t: Tensor, draw: Draw, blocks: Collection[str]) -> tuple[Tensor, Mapping[str, Call]]:
        """Its predictions, and the inputs and outputs of each of the `blocks`."""
        ...


@dataclass(frozen=True)
class LiveTeacher:
    """The dense network itself, run in eval mode; its parameters get no gradients."""

    network: nn.Module

    @property
    def dense(self) -> nn.Module:
        return self.network

    def output(self, x_t: Tensor, draw: Draw, share: Tensor | None = None) -> Tensor:
        with torch.no_grad(), any_attention() if share is not None else nullcontext():
            return predict(self.network, *at(x_t, draw, share))

    def projections(
        self, x_t: Tensor, draw: Draw, share: Tensor, directions: Sequence[Tensor], projection: Projection
    ) -> tuple[Tensor, list[Tensor]]:
        # A projection by jvp differentiates the teacher twice too.
        with frozen(self.network), any_attention() if projection == "vjp" else nullcontext():
            output, products = project(self.network, *at(x_t, draw, share), directions, projection, create_graph=False)
        return output.detach(), [product.detach() for product in products]

    def growth(
        self, x_t: Tensor, draw: Draw, share: Tensor, directions: Sequence[Tensor], projection: Projection
    ) -> tuple[Tensor, Tensor]:
        output, products = self.projections(x_t, draw, share, directions, projection)
        return output, squared_lengths(products)

    def hidden(self, x_t: Tensor, draw: Draw, blocks: Collection[str]) -> tuple[Tensor, Mapping[str, Call]]:
        with torch.no_grad(), hidden_states(self.network, blocks) as states:
            output = predict(self.network, *at(x_t, draw))
        return output, {name: calls[0] for name, calls in states.items()}


def as_teacher(teacher: nn.Module | Teacher) -> Teacher:
    """Wrap a network as a teacher; other teachers are returned as they are."""
    return LiveTeacher(teacher) if isinstance(teacher, nn.Module) else teacher


def at(x_t: Tensor, draw: Draw, share: Tensor | None = None) -> tuple[Tensor, Tensor, Conditions]:
    """The arguments of a network's call, for the samples of `share`."""
    if share is None:
        return x_t, draw.timesteps, draw.conditions
    return x_t[share], draw.timesteps[share], rows(draw.conditions, share)
