"""Magnitude: the norm of all weights that belong to a unit."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .criterion import Criterion, Options, ScoringConfig, free
from .ranking import Ranking, parameters_of
from .reductions import Reduction, Sums, entry_sums, reduced, scores_of, summed_axes


@dataclass(frozen=True)
class MagnitudeOptions(Options):
    """Options of magnitude.

    Attributes:
        reduction: which entries of a unit count, and how: as in taylor, with w instead of w g.
    """

    reduction: Reduction = "abs"


def magnitude(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: MagnitudeOptions,
) -> Ranking:
    """Sum of |w| (or w^2) over a unit's slices (Li et al. 2017, section 3.1, on coupled slices)."""
    parameters, sums = parameters_of(model), Sums()
    for name, axes in summed_axes(structure, parameters).items():
        importance = reduced(parameters[name].detach(), model, name, options.reduction)
        if importance is not None:
            sums |= entry_sums(name, importance, axes)
    return Ranking(scores_of(structure, sums, options.reduction))


MAGNITUDE = Criterion("magnitude", MagnitudeOptions, magnitude, free, needs_data=False)
