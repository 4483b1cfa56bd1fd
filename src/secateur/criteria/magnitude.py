"""Magnitude: the norm of everything that would leave with a unit."""

from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .config import ScoringConfig
from .ranking import Ranking, parameters_of, reduce_elements, unit_scores


def magnitude(model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig) -> Ranking:
    """Sum of |w| (or w^2) over a unit's slices (Li et al. 2017, section 3.1, on coupled slices)."""
    importance = {
        name: reduce_elements(parameter.detach(), config.element_reduction)
        for name, parameter in parameters_of(model).items()
    }
    return Ranking(unit_scores(structure, importance, config.group_reduction))
