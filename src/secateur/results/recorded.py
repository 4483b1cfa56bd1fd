"""The teacher's book that a recovery read."""

from __future__ import annotations

from dataclasses import dataclass

from .display import Displayed
from .numbers import format_number
from .table import Table


@dataclass(frozen=True)
class Recorded(Displayed):
    """What was written down of the dense model's answers.

    Attributes:
        tuples: of image, noise, timestep and condition, that were learned from.
        held_out: further ones, that were not.
        bytes: that the answers take.
        seconds: that asking took; 0 where another run had asked.
    """

    tuples: int
    held_out: int
    bytes: int
    seconds: float

    def sentences(self) -> tuple[str, ...]:
        """How many answers, how large, and how long that took."""
        size = f"{self.bytes / 1e6:.3g} MB"
        return (f"The dense model answered {self.tuples:,} tuples in {format_number(self.seconds)} s ({size}).",)

    def tables(self) -> dict[str, Table]:
        """Its numbers."""
        columns = ("tuples", "held out", "bytes", "seconds")
        return {"book": Table(columns, ((self.tuples, self.held_out, self.bytes, self.seconds),))}
