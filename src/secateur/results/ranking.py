"""The result of a criterion: scores of every unit and block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .display import Displayed
from .table import Table

Direction = Literal["noise", "collapse", "neither"]


@dataclass(frozen=True)
class LossCurve:
    """Calibration losses by timestep, starting at the clean end, and how many of the first timesteps the score used."""

    timesteps: tuple[float, ...]
    losses: tuple[float, ...]
    used: int

    def __post_init__(self) -> None:
        if not 0 < self.used <= len(self.losses) == len(self.timesteps):
            raise ValueError("a curve has as many losses as timesteps, of which some are used")


@dataclass(frozen=True)
class BlockEffect:
    """The effect of dropping one block on the output; tuples have one entry per timestep bin.

    Attributes:
        rank: 1 is removed first.
        rank_low, rank_high: the middle 90 % of the ranks over resamples of the images.
        ced_stratified, ced_pooled: |change of log standard deviation|, mean over bins, or over all bins at once.
        deviation: geometric mean over tuples of the root mean square of prediction without the block -
            prediction.
        direction: whether the spread of the output grows (noise), shrinks (collapse), or does neither consistently.
        output_error: E|prediction without the block - prediction|^2 / E|prediction|^2.
        loss_change: denoising loss without the block minus that of the full model.
        cosine: 1 - cos(input, output) of the block, mean over tokens.
        signed, output_errors, loss_changes: change of log standard deviation, output error and loss change by bin.
    """

    rank: int
    rank_low: int
    rank_high: int
    ced_stratified: float
    ced_pooled: float
    deviation: float
    direction: Direction
    output_error: float
    loss_change: float
    cosine: float
    signed: tuple[float, ...]
    output_errors: tuple[float, ...]
    loss_changes: tuple[float, ...]


@dataclass(frozen=True)
class BlockReport:
    """The effect of dropping each block, all on the same inputs.

    Attributes:
        images: how many images, each once in every bin.
        timesteps: the middle of each timestep bin in the network's unit, from the clean end.
        blocks: by name, in the order of the forward pass.
        correlations: Spearman's rank correlation of the scores with other ones; None where one of them is constant.
    """

    images: int
    timesteps: tuple[float, ...]
    blocks: Mapping[str, BlockEffect]
    correlations: Mapping[str, float | None]

    def __post_init__(self) -> None:
        bins = {len(values) for one in self.blocks.values() for values in (one.signed, one.output_errors)}
        if bins - {len(self.timesteps)}:
            raise ValueError("every block has as many bins as there are timesteps")


@dataclass(frozen=True)
class Ranking(Displayed):
    """Scores of every unit and block; the lowest is removed first.

    Attributes:
        criterion: its name.
        dims: scores of the units of every dim, in the order of the model; empty for criteria that rank blocks only.
        blocks: score of every block.
        curve: the calibration loss by timestep, if the criterion measures it.
        block_report: the effect of dropping each block, if the criterion measures it.
        options: options of the criterion.
        seconds: time of the scoring.
    """

    criterion: str
    dims: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    blocks: Mapping[str, float] = field(default_factory=dict)
    curve: LossCurve | None = None
    block_report: BlockReport | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.block_report is not None and not self.blocks.keys() <= self.block_report.blocks.keys():
            raise ValueError("the report does not speak of every block")

    def tables(self) -> dict[str, Table]:
        """Dims and blocks, as far as they were scored."""
        found = {"ranking": ranking_table(self)} if self.dims else {}
        if self.blocks:
            found["blocks"] = block_table(self)
        if self.block_report is not None:
            found["correlations"] = correlation_table(self)
        return found


def ranking_table(ranking: Ranking, removed: Mapping[str, int] | None = None) -> Table:
    """Every dim: units, lowest, mean and highest score, and the number of units that a cut removes, from `removed`."""
    rows = []
    for name, scores in ranking.dims.items():
        spread = (min(scores), sum(scores) / len(scores), max(scores)) if scores else (None, None, None)
        rows.append((name, len(scores), *spread, (removed or {}).get(name)))
    return Table(("dim", "units", "lowest", "mean", "highest", "removed"), tuple(rows)).without_empty_columns()


EFFECTS = {
    "rank": "rank",
    "rank from": "rank_low",
    "rank to": "rank_high",
    "direction": "direction",
    "output error": "output_error",
    "loss change": "loss_change",
    "cosine": "cosine",
}


def block_table(ranking: Ranking, removed: tuple[str, ...] | None = None) -> Table:
    """Every block: its score, the effect of dropping it if measured, and whether a cut removes it."""
    report = ranking.block_report
    shown = EFFECTS if report is not None else {}
    rows = []
    for name, score in ranking.blocks.items():
        effects = [getattr(report.blocks[name], key) for key in shown.values()] if report is not None else []
        rows.append((name, score, *effects, None if removed is None else "yes" if name in removed else ""))
    return Table(("block", "score", *shown, "removed"), tuple(rows)).without_empty_columns()


def correlation_table(ranking: Ranking) -> Table:
    """Rank correlation of the block scores with each other score that was measured beside them."""
    rows = tuple(ranking.block_report.correlations.items()) if ranking.block_report is not None else ()
    return Table((f"{ranking.criterion} against", "rank correlation"), rows)
