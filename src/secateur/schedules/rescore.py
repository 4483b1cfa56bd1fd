"""Scoring between the stages of a schedule, with what the gradient-flow criterion has to say about the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

from torch import nn

from ..criteria import CriterionName, ScoringConfig, score
from ..criteria.gradient_flow import gradient_flow_scores, gradient_flow_statistics
from ..criteria.ranking import check_finite
from ..data import Batch
from ..models.registry import describe
from ..process.base import Process
from .solver import Scores


@dataclass(frozen=True)
class Scored:
    """Scores (low leaves first), and numbers for the log."""

    scores: Scores
    facts: dict[str, float] = field(default_factory=dict)


def stage_scorer(
    process: Process, batch: Batch, criterion: CriterionName, config: ScoringConfig
) -> Callable[[nn.Module], Scored]:
    """A function from a model to its scores.

    It reports the mean calibration loss of a criterion that has one; gradient flow also its energy and the root mean
    square of the gradient norms over timesteps.
    """

    def any_criterion(model: nn.Module) -> Scored:
        ranking = score(model, process, batch, describe(model), criterion, config)
        return Scored(ranking.scores, {"loss": fmean(ranking.curve.losses)} if ranking.curve else {})

    def gradient_flow(model: nn.Module) -> Scored:
        statistics = gradient_flow_statistics(model, process, batch, config)
        facts = {
            "energy": statistics.energy,
            "gradient_norm": math.sqrt(fmean(norm**2 for norm in statistics.gradient_norms)),
            "loss": fmean(statistics.losses),
        }
        scores = gradient_flow_scores(model, describe(model), statistics, config)
        check_finite(scores)
        return Scored(scores, facts)

    return gradient_flow if criterion == "gradient-flow" else any_criterion
