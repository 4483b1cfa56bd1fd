"""The result of a search for the smallest model that keeps a quality."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.units import number_of
from .display import Displayed
from .numbers import format_number, percent
from .table import Table


@dataclass(frozen=True)
class QualityTry:
    """A model that was cut, refitted if asked, and measured.

    Attributes:
        asked: share of the dense model's MACs that was asked of the cut.
        macs: share that it reached; None if no cut goes that far.
        quality: its measured quality; None without a cut, or if it is not finite.
        holds: whether that meets the target.
    """

    asked: float
    macs: float | None
    quality: float | None
    holds: bool


@dataclass(frozen=True)
class QualitySearch(Displayed):
    """A bisection over the size of a model.

    Attributes:
        target: as the user gave it.
        metric: what was measured, in words.
        tries: in order.
    """

    target: str
    metric: str
    tries: tuple[QualityTry, ...] = ()

    @property
    def found(self) -> QualityTry | None:
        """The smallest model that keeps the quality."""
        return min((each for each in self.tries if each.holds), key=lambda each: each.macs or 1.0, default=None)

    @property
    def _measured(self) -> int:
        """How many sizes a cut could reach."""
        return sum(each.macs is not None for each in self.tries)

    def sentences(self) -> tuple[str, ...]:
        """What was asked, and the smallest model that meets it."""
        if self.found is None:
            return (f"None of {number_of(self._measured, 'smaller model')} that were tried holds {self.target}.",)
        size, quality = percent(self.found.macs or 1.0, 1), format_number(self.found.quality or 0.0)
        return (
            f"Of {number_of(self._measured, 'model')} cut and measured for {self.target}, the smallest that holds it "
            f"has {size} of the MACs: {self.metric} {quality}.",
        )

    def tables(self) -> dict[str, Table]:
        """Every try."""
        rows = tuple((each.asked, each.macs, each.quality, "yes" if each.holds else "no") for each in self.tries)
        return {"quality": Table(("asked", "MACs", self.metric, "holds"), rows)}
