"""What one family of metrics says of one model."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .estimates import Estimate


@dataclass(frozen=True)
class Measured:
    """Fields of the model's `results.ModelResult`, and metrics with their resamples."""

    fields: dict[str, Any] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def joined(parts: Iterable[Measured]) -> Measured:
    """All families of a model together; what is not finite, such as the PSNR of equal images, is no estimate."""
    fields: dict[str, Any] = {}
    estimates: dict[str, Estimate] = {}
    notes: tuple[str, ...] = ()
    for part in parts:
        fields |= part.fields
        estimates |= {key: found for key, found in part.estimates.items() if found.finite}
        notes += part.notes
    return Measured(fields, estimates, notes)


def number(value: float) -> float | None:
    """The value, or None for what JSON cannot hold: the PSNR of equal images, the loss of a diverged model."""
    return value if math.isfinite(value) else None
