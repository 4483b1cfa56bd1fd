"""A micro-batch with all of its random draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..models.conditions import Conditions
from ..models.jacobian import unit_directions
from ..process.reconstruction import first_entries


@dataclass(frozen=True)
class Draw:
    """A micro-batch with its random draws.

    `sample` and `noise` are (B, C, H, W), `timesteps` (B,) in the network's unit, `conditions` have B rows.
    `normal(k)`, k = 1, 2, ..., are further standard normal tensors (B, C, H, W), for random projections. `answers` are
    those of the teacher's book for these tuples, B rows each; empty without a book.
    """

    sample: Tensor
    noise: Tensor
    timesteps: Tensor
    conditions: Conditions
    normal: Callable[[int], Tensor]
    answers: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Draw:
        """Moved to `device`; floating-point tensors are converted to `dtype` if that is wider."""

        def moved(value: Tensor) -> Tensor:
            finest = torch.promote_types(value.dtype, dtype) if value.is_floating_point() else value.dtype
            return value.to(device, finest, non_blocking=device.type == "cuda")

        return self._with(moved)

    def pinned(self) -> Draw:
        """In pinned memory, from which a GPU copies asynchronously."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Draw:
        return replace(
            self,
            sample=change(self.sample),
            noise=change(self.noise),
            timesteps=change(self.timesteps),
            conditions={name: change(value) for name, value in self.conditions.items()},
            normal=lambda k: change(self.normal(k)),
            answers={name: change(value) for name, value in self.answers.items()},
        )


def mirrored(sample: Tensor, which: Tensor) -> Tensor:
    """`sample` (B, ..., W), with the rows that `which` (B,) selects mirrored left to right."""
    return torch.where(which.reshape(-1, *[1] * (sample.ndim - 1)), sample.flip(-1), sample)


def directions_of(draw: Draw, like: Tensor, count: int, share: Tensor | None = None) -> list[Tensor]:
    """`count` random directions of length 1 for each sample of `share`, None for all, shaped as `like` (of those)."""
    normals = (draw.normal(k) for k in range(1, count + 1))
    return unit_directions([first_entries(each if share is None else each[share], like) for each in normals])
