"""What refitting the readers of cut dims brought back, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reader:
    """A layer that reads a cut dim.

    Attributes:
        rows: input positions that it was fitted on.
        columns: input features, the bias's included.
        before, after: E|target - output|^2 / E|target|^2 with the weights as cut, and as refitted. The target is the
            layer's own dense output or, for a layer that adds to a residual stream, the stream behind its block.
        seconds: that it took.
    """

    rows: int
    columns: int
    before: float | None
    after: float | None
    seconds: float | None = None


@dataclass(frozen=True)
class Compensation:
    """The error of every reader before and after it was refitted.

    Attributes:
        readers: by the name of the layer in the cut model, in the order of the forward pass.
        tuples: of image, timestep and noise that they were fitted on.
        before, after: E|dense output - output|^2 / E|dense output|^2 of the whole model, where that was measured.
        options: of the method.
        seconds: in all.
        left: readers that keep the weights of the cut, and why.
    """

    readers: Mapping[str, Reader] = field(default_factory=dict)
    tuples: int = 0
    before: float | None = None
    after: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    left: Mapping[str, str] = field(default_factory=dict)
