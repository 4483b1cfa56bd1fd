"""Criteria: which units matter least. One file each; docs/adding-a-criterion.md shows how to add the next."""

from collections.abc import Callable

from torch import nn

from ..data import Batch
from ..process import Process
from ..structure import Structure
from .config import CriterionConfig
from .diff_pruning import diff_pruning, taylor
from .magnitude import magnitude
from .random import random
from .ranking import LossCurve, Ranking, unit_scores

Criterion = Callable[[nn.Module, Process, Batch, Structure, CriterionConfig], Ranking]

CRITERIA: dict[str, Criterion] = {
    "random": random,
    "magnitude": magnitude,
    "taylor": taylor,
    "diff-pruning": diff_pruning,
}


def score(model: nn.Module, process: Process, batch: Batch, structure: Structure, config: CriterionConfig) -> Ranking:
    """Rank the units and blocks of `model` by the criterion that `config` names."""
    return CRITERIA[config.name](model, process, batch, structure, config)


__all__ = ["CRITERIA", "Criterion", "CriterionConfig", "LossCurve", "Ranking", "score", "unit_scores"]
