"""How a block's result depends on the output p of one of its layers: s + g f(p), the stream and a gated addition.

f is the identity, or a division by the root mean square of the channels (`normed`). The gate g, one for each image and
channel, holds what else scales the addition: adaLN's gate, and the weights of the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..base.distributed import sum_over_processes
from .gated import gated_change
from .normed import normed, normed_change
from .positions import by_position

ROUNDING = 1e-3  # largest |addition - g f(p)| / |g f(p)| that counts as rounding; more for half precision
HALF_ROUNDING = 5e-2
ROUNDED = 2  # units in the last place of the whole stream, by which a small layer's share of it may be off


@dataclass(frozen=True)
class Form:
    """A form of f, on the last axis, and the best change of a layer for it, which takes and returns what
    `normed_change` does."""

    apply: Callable[[Tensor], Tensor]
    change: Callable[..., tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Gate:
    """A gate for each image and channel, (B, C), which of the streams (S,) it writes, and how many positions each has.

    Texts of different lengths give a stream another number of positions in each micro-batch.
    """

    values: Tensor
    written: Tensor
    sizes: Tensor

    @staticmethod
    def of(moved: Sequence[Tensor]) -> Gate:
        """The gate from the change of every stream, (B, P, C) each, for an output of ones."""
        streams = [tokens(stream) for stream in moved]
        changed = [bool(stream.any()) for stream in streams]
        gated = streams[changed.index(True)] if any(changed) else streams[0]
        sizes = torch.tensor([stream.shape[1] for stream in streams], device=gated.device)
        return Gate(gated[:, 0], torch.tensor(changed, device=gated.device), sizes)

    def times(self, factors_C: Tensor) -> Gate:
        """The gate after a norm's weights were multiplied by `factors_C`."""
        return replace(self, values=self.values * factors_C.to(self.values))

    def positions(self, streams_BPC: Tensor) -> Tensor:
        """The written positions of the joined streams; none if the gate is zero everywhere."""
        return streams_BPC[:, self.written.repeat_interleave(self.sizes)]

    def explains(self, whole_BPC: Tensor, without_BPC: Tensor, output_BPC: Tensor, form: Form) -> bool:
        """Whether the layer adds g f(p) to the streams: the joined ones with it, those without, and its output p."""
        change = self.positions(whole_BPC - without_BPC)
        if change.shape != output_BPC.shape:
            return False
        expected = self.values[:, None] * form.apply(output_BPC)
        rounding = ROUNDING if whole_BPC.dtype in (torch.float32, torch.float64) else HALF_ROUNDING
        rounded = ROUNDED * torch.finfo(whole_BPC.dtype).eps
        return bool((change - expected).norm() <= rounding * expected.norm() + rounded * whole_BPC.norm())


def written_alike(gates: Sequence[Mapping[str, Gate]]) -> list[dict[str, Gate]]:
    """The gates of every micro-batch, by layer, with the streams that any of them writes in any process: a gate may be
    zero for all images of one."""
    written = {
        name: sum_over_processes(torch.stack([each[name].written for each in gates]).sum(0)) > 0 for name in gates[0]
    }
    return [{name: replace(gate, written=written[name]) for name, gate in each.items()} for each in gates]


def tokens(stream: Tensor) -> Tensor:
    """A stream as (B, P, C)."""
    return by_position(stream, is_image=stream.ndim == 4)


def joined(streams: Sequence[Tensor | None]) -> Tensor:
    """The positions of all streams, one after another: (B, P, C)."""
    return torch.cat([tokens(stream) for stream in streams if stream is not None], dim=1)


def _linear_change(
    x_IRK: Tensor,
    output_IRM: Tensor,
    gate_IM: Tensor,
    error_IRM: Tensor,
    ridge: float,
    bias: bool,
    rescale: bool,
    total: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    change = gated_change(x_IRK, gate_IM, error_IRM, ridge, bias, total)
    return change, torch.ones_like(gate_IM[0]), error_IRM - gate_IM[:, None] * (x_IRK @ change.to(x_IRK))


FORMS = (Form(lambda output: output, _linear_change), Form(normed, normed_change))
