"""Criteria: which units matter least. One file each; docs/adding-a-criterion.md shows how to add the next."""

from collections.abc import Callable

from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .blocks.report import BlockEffect, BlockReport
from .ced import ced
from .config import CriterionName, ScoringConfig
from .cosine import cosine
from .deviation import deviation
from .diff_pruning import diff_pruning, taylor
from .gradient_flow import gradient_flow
from .loss_change import loss_change
from .magnitude import magnitude
from .random import random
from .ranking import LossCurve, Ranking, check_finite, unit_scores
from .uniform import uniform

Criterion = Callable[[nn.Module, Process, Batch, Structure, ScoringConfig], Ranking]

CRITERIA: dict[CriterionName, Criterion] = {
    "random": random,
    "magnitude": magnitude,
    "taylor": taylor,
    "diff-pruning": diff_pruning,
    "gradient-flow": gradient_flow,
    "ced": ced,
    "deviation": deviation,
    "uniform": uniform,
    "cosine": cosine,
    "loss-change": loss_change,
}
# They score no dims.
BLOCK_CRITERIA: frozenset[CriterionName] = frozenset({"ced", "deviation", "uniform", "cosine", "loss-change"})


def score(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    criterion: CriterionName = "diff-pruning",
    config: ScoringConfig | None = None,
) -> Ranking:
    """Rank the units and blocks of `model` by the named criterion.

    Raises:
        TrainingError: a calibration loss or a score is not finite.
    """
    ranking = CRITERIA[criterion](model, process, batch, structure, config or ScoringConfig())
    check_finite(ranking.scores)
    return ranking


__all__ = [
    "BLOCK_CRITERIA",
    "CRITERIA",
    "BlockEffect",
    "BlockReport",
    "Criterion",
    "CriterionName",
    "LossCurve",
    "Ranking",
    "ScoringConfig",
    "score",
    "unit_scores",
]
