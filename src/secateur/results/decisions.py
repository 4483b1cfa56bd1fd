"""Decisions of a schedule during recovery: the lines of `stages.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .codec import from_json, read_lines
from .display import Displayed
from .numbers import percent
from .table import Table


@dataclass(frozen=True)
class Refit:
    """The effect of compensation after a cut: E|dense output - output|^2 / E|dense output|^2 before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class SoftStage:
    """A stage of progressive pruning, which lowers the masks of the units that were selected.

    Attributes:
        step: the recovery step before which it took place.
        stage: its number, from 1.
        selected: units that are being masked, or are fully masked.
        macs: MACs of the model without these.
        masks: how many units have the mask 0, 1 / n, 2 / n ... 1.
        seconds: time of the decision.
        energy, gradient_norm, loss: of the masked model, if the criterion measures them.
        removed: whether masked units were removed after it.
        refit: the effect of compensation after that.
    """

    step: int
    stage: int
    selected: int
    macs: int
    masks: tuple[int, ...]
    seconds: float = 0.0
    energy: float | None = None
    gradient_norm: float | None = None
    loss: float | None = None
    removed: bool = False
    refit: Refit | None = None

    def __post_init__(self) -> None:
        if len(self.masks) < 2:
            raise ValueError("masks have two values or more")


@dataclass(frozen=True)
class Candidate:
    """A possible number of removed blocks after a stage, and measurements of the model without them.

    Attributes:
        count: number of blocks removed from the dense model.
        saved: share of the dense model's MACs that this saves.
        ntk: logarithm of the condition number of the neural tangent kernel.
        zico: mean over layers.
        guard: loss divided by the present model's.
        score: the score that decides.
    """

    count: int
    saved: float | None = None
    ntk: float | None = None
    zico: float | None = None
    guard: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class BlockStage:
    """A stage of adaptive pruning, which chooses how many of the lowest-ranked blocks to remove.

    Attributes:
        step: the recovery step before which it took place.
        stage: its number, from 1.
        ranking: score of each remaining block, in order of removal; names are the dense model's.
        candidates: the numbers of blocks that were compared.
        chosen: the chosen number.
        removed: blocks that were removed.
        blocks: how many stay.
        macs: MACs of the model after it.
        seconds: time of the decision.
        refit: the effect of compensation after blocks were removed.
    """

    step: int
    stage: int
    ranking: Mapping[str, float]
    candidates: tuple[Candidate, ...]
    chosen: int
    removed: tuple[str, ...] = ()
    blocks: int = 0
    macs: int = 0
    seconds: float = 0.0
    refit: Refit | None = None


@dataclass(frozen=True)
class Decisions(Displayed):
    """Every stage of a schedule, in order; a run has stages of one of the two kinds."""

    soft: tuple[SoftStage, ...] = ()
    blocks: tuple[BlockStage, ...] = ()

    @property
    def removal_step(self) -> int | None:
        """The step at which the last soft stage removed the masked units; None before that."""
        return self.soft[-1].step if self.soft and self.soft[-1].removed else None

    @property
    def removed_blocks(self) -> tuple[str, ...]:
        """Removed blocks, in order."""
        return tuple(name for stage in self.blocks for name in stage.removed)

    def sentences(self) -> tuple[str, ...]:
        """The effect of compensation after every cut."""
        stages: tuple[SoftStage | BlockStage, ...] = (*self.soft, *self.blocks)
        refits = [(stage.step, stage.refit) for stage in stages if stage.refit is not None]
        return tuple(
            f"After the cut at step {step}, refitting took the error of the whole model's output from "
            f"{percent(refit.before, 1)} to {percent(refit.after, 1)} of the dense output's square."
            for step, refit in refits
        )

    def tables(self) -> dict[str, Table]:
        """Soft stages, and candidates of the choices of blocks."""
        found = {"stages": stage_table(self.soft)} if self.soft else {}
        return found | ({"decisions": decision_table(self.blocks)} if self.blocks else {})


def read_decisions(path: str | Path) -> Decisions:
    """The decisions in `stages.jsonl`; lines of other schedules are ignored.

    Raises:
        SecateurError: a line is damaged; the message names file, line and field.
    """
    soft, blocks = [], []
    for number, line in enumerate(read_lines(path), start=1):
        source = f"{path}, line {number},"
        if "masks" in line:
            soft.append(from_json(SoftStage, line, source))
        elif "ranking" in line:
            blocks.append(from_json(BlockStage, line, source))
    return Decisions(tuple(soft), tuple(blocks))


STAGE = {
    "stage": "stage",
    "step": "step",
    "selected": "selected",
    "MACs": "macs",
    "energy": "energy",
    "gradient norm": "gradient_norm",
    "calibration loss": "loss",
    "seconds": "seconds",
}


def stage_table(stages: tuple[SoftStage, ...]) -> Table:
    """Every stage of progressive pruning, without empty columns."""
    rows = tuple(tuple(getattr(stage, key) for key in STAGE.values()) for stage in stages)
    return Table(tuple(STAGE), rows).without_empty_columns()


CANDIDATE = {
    "blocks gone": "count",
    "MACs saved (%)": "saved",
    "log NTK condition": "ntk",
    "ZiCo": "zico",
    "loss / present": "guard",
    "score": "score",
}


def decision_table(stages: tuple[BlockStage, ...]) -> Table:
    """Every candidate of every stage of adaptive pruning, its measurements, and which was chosen."""
    rows = []
    for stage in stages:
        for candidate in stage.candidates:
            values = [getattr(candidate, key) for key in CANDIDATE.values()]
            values[1] = None if values[1] is None else 100 * values[1]
            chosen = candidate.count == stage.chosen
            removed = ", ".join(stage.removed) if chosen else ""
            rows.append((stage.stage, stage.step, *values, "yes" if chosen else "", removed))
    return Table(("stage", "step", *CANDIDATE, "chosen", "removed"), tuple(rows))
