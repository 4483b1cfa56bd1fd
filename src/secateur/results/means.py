"""Measured numbers with their uncertainty, and when two of them are too close to call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from .numbers import format_measured

TIED_WITHIN = 2.0  # standard errors of a difference


@dataclass(frozen=True)
class Mean:
    """A mean over `count` runs, their standard deviation, and the standard error of the mean; None where unknown."""

    value: float
    spread: float | None = None
    error: float | None = None
    count: int = 1

    def __str__(self) -> str:
        return format_measured(self.value, self.spread)


def combine(values: Sequence[float], errors: Sequence[float | None]) -> Mean:
    """The mean of one or more runs that differ in their seeds only.

    The spread of several runs is the standard deviation among them. A single run has the error of its own measurement,
    if known.
    """
    if len(values) == 1:
        return Mean(values[0], errors[0], errors[0])
    spread = stdev(values)
    return Mean(fmean(values), spread, spread / math.sqrt(len(values)), len(values))


def tied(one: Mean, other: Mean) -> bool:
    """Whether the difference is less than two of its standard errors; unknown errors count as zero."""
    error = math.hypot(one.error or 0.0, other.error or 0.0)
    return abs(one.value - other.value) <= TIED_WITHIN * error
