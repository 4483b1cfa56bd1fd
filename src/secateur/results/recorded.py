"""The teacher's book that a recovery trained on."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.units import number_of
from .display import Displayed
from .numbers import format_seconds
from .table import Table


@dataclass(frozen=True)
class Recorded(Displayed):
    """Size and cost of the recorded answers of the dense model.

    Attributes:
        tuples: number of (image, noise, timestep, condition) to train on.
        held_out: number of further ones that are not trained on.
        bytes: size of the answers.
        seconds: time of recording; 0 if another run had recorded them.
    """

    tuples: int
    held_out: int
    bytes: int
    seconds: float

    def sentences(self) -> tuple[str, ...]:
        """Number, size and time of the answers."""
        took = f" in {format_seconds(self.seconds)}" if self.seconds else ""
        return (f"The dense model answered {number_of(self.tuples, 'tuple')}{took} ({self.bytes / 1e6:,.2f} MB).",)

    def tables(self) -> dict[str, Table]:
        """Its numbers."""
        columns = ("tuples", "held out", "bytes", "seconds")
        return {"book": Table(columns, ((self.tuples, self.held_out, self.bytes, self.seconds),))}
