"""A step that was taken, whose numbers may still be on their way from the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Taken:
    """A step that was taken, with numbers that may still be on their way from the device.

    Attributes:
        step: how many steps were done with it.
        weights: of the terms.
        values: the terms, the gradient's norm and the number of interrupted processes, in a row.
        arrived: when the device has copied `values`; None where they are there.
        record: what else the log says of it.
    """

    step: int
    weights: Mapping[str, float]
    values: torch.Tensor
    arrived: torch.cuda.Event | None
    record: dict[str, float]

    @cached_property
    def _numbers(self) -> list[float]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()

    @property
    def terms(self) -> dict[str, float]:
        return dict(zip(self.weights, self._numbers[:-2], strict=True))

    @property
    def loss(self) -> float:
        return sum(self.weights[name] * value for name, value in self.terms.items())

    @property
    def grad_norm(self) -> float:
        return self._numbers[-2]

    @property
    def interrupted(self) -> bool:
        """Whether some process was."""
        return self._numbers[-1] > 0
