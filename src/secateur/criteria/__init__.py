"""Criteria: which units matter least. One file each; docs/adding-a-criterion.md shows how to add the next."""

from collections.abc import Callable

from torch import nn

from ..data import Batch
from ..process import Process
from ..structure import Structure
from .config import CriterionName, ScoringConfig
from .diff_pruning import diff_pruning, taylor
from .magnitude import magnitude
from .random import random
from .ranking import LossCurve, Ranking, unit_scores

Criterion = Callable[[nn.Module, Process, Batch, Structure, ScoringConfig], Ranking]

CRITERIA: dict[CriterionName, Criterion] = {
    "random": random,
    "magnitude": magnitude,
    "taylor": taylor,
    "diff-pruning": diff_pruning,
}


def score(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    criterion: CriterionName = "diff-pruning",
    config: ScoringConfig | None = None,
) -> Ranking:
    """Rank the units and blocks of `model` by the named criterion."""
    return CRITERIA[criterion](model, process, batch, structure, config or ScoringConfig())


__all__ = ["CRITERIA", "Criterion", "CriterionName", "LossCurve", "Ranking", "ScoringConfig", "score", "unit_scores"]
