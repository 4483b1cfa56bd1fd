"""The result of refitting the layers that read cut dims, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..base.units import number_of
from .display import Displayed
from .numbers import format_seconds, percent
from .table import Table


@dataclass(frozen=True)
class Reader:
    """A layer that reads a cut dim.

    Attributes:
        rows: input positions that it was fitted on.
        columns: input features, the bias's included.
        before, after: E|target - output|^2 / E|target|^2 with the weights after the cut, and after the refit.
            The target is the layer's own dense output or, for a layer that adds to a residual stream, the stream behind
            its block.
        seconds: time of its refit.
        target: which of the two it was.
    """

    rows: int
    columns: int
    before: float | None
    after: float | None
    seconds: float | None = None
    target: Literal["output", "stream"] | None = None


@dataclass(frozen=True)
class Compensation(Displayed):
    """The error of every reader before and after it was refitted.

    Attributes:
        readers: by the name of the layer in the cut model, in the order of the forward pass.
        tuples: number of (image, timestep, noise) that they were fitted on.
        before, after: E|dense output - output|^2 / E|dense output|^2 of the whole model, if it was measured.
        options: options of the method.
        seconds: total time.
        left: readers that were not refitted, and why.
    """

    readers: Mapping[str, Reader] = field(default_factory=dict)
    tuples: int = 0
    before: float | None = None
    after: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    left: Mapping[str, str] = field(default_factory=dict)

    def sentences(self) -> tuple[str, ...]:
        """Number of refitted layers, time, and effect on the model's output."""
        took = "" if self.seconds is None else f" in {format_seconds(self.seconds)}"
        count = len(self.readers)
        layers = f"{number_of(count, 'layer')} {'was' if count == 1 else 'were'} refitted to the dense model{took}"
        kept = tuple(f"{name} keeps the weights of the cut: {why}." for name, why in self.left.items())
        if self.before is None or self.after is None:
            return (f"{layers}.", *kept)
        error = f"{percent(self.before, 1)} to {percent(self.after, 1)} of the dense output's square"
        return (f"{layers}, which took the error of the whole model's output from {error}.", *kept)

    def tables(self) -> dict[str, Table]:
        """Every reader, if there is one."""
        return {"compensation": compensation_table(self)} if self.readers else {}


def _share(one: Reader) -> float | None:
    return None if not one.before or one.after is None else one.after / one.before


def compensation_table(found: Compensation) -> Table:
    """Every refitted layer: its rows and columns, and its error before and after."""
    rows = tuple(
        (name, one.target, one.rows, one.columns, one.before, one.after, _share(one), one.seconds)
        for name, one in found.readers.items()
    )  # fmt: skip
    columns = ("layer", "fitted to", "rows", "columns", "error before", "error after", "after / before", "seconds")
    return Table(columns, rows).without_empty_columns()
