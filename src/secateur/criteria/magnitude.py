"""Magnitude: the norm of everything that would leave with a unit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .criterion import Criterion, Options, ScoringConfig, free
from .ranking import ElementReduction, GroupReduction, Ranking, parameters_of, reduce_elements, unit_scores


@dataclass(frozen=True)
class MagnitudeOptions(Options):
    """Options of magnitude.

    Attributes:
        element_reduction: abs or square of each w.
        group_reduction: sum over a unit's entries, or mean per layer normalized by the layer's own mean.
    """

    element_reduction: ElementReduction = "abs"
    group_reduction: GroupReduction = "sum"


def magnitude(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: MagnitudeOptions,
) -> Ranking:
    """Sum of |w| (or w^2) over a unit's slices (Li et al. 2017, section 3.1, on coupled slices)."""
    importance = {
        name: reduce_elements(parameter.detach(), options.element_reduction)
        for name, parameter in parameters_of(model).items()
    }
    return Ranking(unit_scores(structure, importance, options.group_reduction))


MAGNITUDE = Criterion("magnitude", MagnitudeOptions, magnitude, free, needs_data=False)
