"""The result of a cut: what was asked and reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..base.units import format_count, number_of
from .display import Displayed
from .numbers import percent
from .table import Table

UNITS = {"macs": " MACs", "params": " parameters", "latency": " ms", "blocks": " blocks"}


@dataclass(frozen=True)
class Size:
    """Size of a model: multiply-accumulates of one call on one sample, of which attention products; parameters."""

    macs: float
    attention_macs: float
    parameters: int


@dataclass(frozen=True)
class DimCut:
    """Units of a dim before and after, and the channels of a unit."""

    units: int
    kept: int
    width: int = 1

    def __post_init__(self) -> None:
        if not (self.units > 0 and 0 <= self.kept <= self.units and self.width > 0):
            raise ValueError(f"a dim of {self.units} units cannot keep {self.kept}")


@dataclass(frozen=True)
class CutResult(Displayed):
    """A cut: what was asked, what was reached, and what stays.

    Attributes:
        target: as the user gave it, such as "macs=50%".
        metric: macs, params, latency (ms) or blocks.
        asked, reached, dense: amounts of the metric.
        before, after: sizes of the dense and of the cut model.
        dims: every dim outside removed blocks.
        removed_blocks: by the dense model's names.
        allocation, granularity, round_to: which cuts were allowed.
        excluded: dims and blocks that must not be cut.
    """

    target: str
    metric: str
    asked: float
    reached: float
    dense: float
    before: Size
    after: Size
    dims: Mapping[str, DimCut] = field(default_factory=dict)
    removed_blocks: tuple[str, ...] = ()
    allocation: str = "local"
    granularity: str = "width"
    round_to: int = 1
    excluded: tuple[str, ...] = ()

    @property
    def goal(self) -> str:
        """The target in words: "50% of the MACs", "4 blocks", "20 ms a call"."""
        return goal_in_words(self.target)

    @property
    def missed(self) -> bool:
        """Whether more stays than was asked, beyond rounding."""
        return self.reached > 1.005 * self.asked

    def sentences(self) -> tuple[str, ...]:
        """What was asked, what was reached, and the resulting sizes."""
        unit = UNITS.get(self.metric, "")
        if self.metric == "blocks":
            amount = (
                f"{self.reached:g} of {number_of(int(self.dense), 'block')} {'stays' if self.reached == 1 else 'stay'}"
            )
        else:
            of = f"{_amount(self.metric, self.reached)} of {_amount(self.metric, self.dense)}{unit}"
            amount = f"reached {percent(self.reached, self.dense)} ({of})"
        missed = ", more than asked for" if self.missed else ""
        sizes = [
            f"{percent(after, before)} of the {name} ({format_count(after)} of {format_count(before)})"
            for key, name, after, before in (
                ("macs", "MACs", self.after.macs, self.before.macs),
                ("params", "parameters", self.after.parameters, self.before.parameters),
            )
            if key != self.metric and before
        ]
        count = len(self.removed_blocks)
        gone = f"; {number_of(count, 'block')} removed" if count and self.metric != "blocks" else ""
        return f"Asked for {self.target}; {amount}{missed}.", f"It keeps {' and '.join(sizes)}{gone}."

    def tables(self) -> dict[str, Table]:
        """Sizes before and after, and every dim."""
        return {"sizes": size_table(self)} | ({"cut": cut_table(self)} if self.dims else {})


def goal_in_words(target: str) -> str:
    """A target such as "macs=50%" in words; other text is returned unchanged."""
    metric, equals, amount = target.partition("=")
    if not equals:
        return target
    if metric == "ssim":
        return f"an SSIM of {amount}"
    if metric == "loss":
        return f"a loss at most {amount} higher"
    if metric == "latency":
        return f"{amount} of the latency" if amount.endswith("%") else f"{amount.removesuffix('ms')} ms a call"
    name = {"macs": "MACs", "params": "parameters", "blocks": "blocks"}.get(metric, metric)
    if amount.endswith("%"):
        return f"{amount} of the {name}"
    return f"{amount} {name.removesuffix('s') if amount == '1' else name}"


def _amount(metric: str, value: float) -> str:
    return f"{value:.3g}" if metric == "latency" else format_count(value)


def size_table(cut: CutResult) -> Table:
    """MACs and parameters before and after, and the share that stays."""
    pairs = {"MACs": (cut.before.macs, cut.after.macs), "parameters": (cut.before.parameters, cut.after.parameters)}
    rows = tuple((name, round(a), round(b), 100 * b / a if a else None) for name, (a, b) in pairs.items())
    return Table(("", "before", "after", "kept %"), rows)


def cut_table(cut: CutResult) -> Table:
    """Every dim: units before and after, channels of a unit, and the share that stays."""
    rows = tuple((name, dim.units, dim.kept, dim.width, 100 * dim.kept / dim.units) for name, dim in cut.dims.items())
    return Table(("dim", "before", "after", "channels per unit", "kept %"), rows)
