"""What a search for the smallest model that holds a quality tried."""

from __future__ import annotations

from dataclasses import dataclass

from .display import Displayed
from .numbers import format_number, percent
from .table import Table


@dataclass(frozen=True)
class QualityTry:
    """A model that was cut, refitted where that was asked for, and measured.

    Attributes:
        asked: share of the dense model's MACs that the cut was for.
        macs: share that it came to; None where no cut goes so far.
        quality: what was measured of it; None without a cut, or where it is not finite.
        holds: whether that is good enough.
    """

    asked: float
    macs: float | None
    quality: float | None
    holds: bool


@dataclass(frozen=True)
class QualitySearch(Displayed):
    """A bisection over the size of a model.

    Attributes:
        target: as it was asked for.
        metric: what was measured, in words.
        tries: in order.
    """

    target: str
    metric: str
    tries: tuple[QualityTry, ...] = ()

    @property
    def found(self) -> QualityTry | None:
        """The smallest model that holds the quality."""
        return min((each for each in self.tries if each.holds), key=lambda each: each.macs or 1.0, default=None)

    def sentences(self) -> tuple[str, ...]:
        """What was asked for, and what of it holds where."""
        if self.found is None:
            return (f"None of {len(self.tries)} smaller models that were tried holds {self.target}.",)
        size, quality = percent(self.found.macs or 1.0, 1), format_number(self.found.quality or 0.0)
        return (
            f"Of {len(self.tries)} models that were cut and measured for {self.target}, the smallest that holds it has "
            f"{size} of the MACs: {self.metric} {quality}.",
        )

    def tables(self) -> dict[str, Table]:
        """Every try."""
        rows = tuple((each.asked, each.macs, each.quality, "yes" if each.holds else "no") for each in self.tries)
        return {"quality": Table(("asked", "MACs", self.metric, "holds"), rows)}
