"""Scoring between the stages of a schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

from torch import nn

from ..criteria import ScoringConfig, score
from ..data import Batch
from ..models.registry import describe
from ..process.base import Process
from .solver import Scores


@dataclass(frozen=True)
class Scored:
    """Scores (lowest removed first), and numbers for the log."""

    scores: Scores
    facts: dict[str, float] = field(default_factory=dict)


def stage_scorer(
    process: Process, batch: Batch | None, criterion: str, config: ScoringConfig
) -> Callable[[nn.Module], Scored]:
    """A function from a model to its scores.

    It also returns the criterion's own numbers for the log, and the mean calibration loss if the criterion has losses.
    """

    def scorer(model: nn.Module) -> Scored:
        ranking = score(model, process, batch, describe(model), criterion, config)
        loss = {"loss": fmean(ranking.curve.losses)} if ranking.curve else {}
        return Scored(ranking.scores, {**ranking.facts, **loss})

    return scorer
