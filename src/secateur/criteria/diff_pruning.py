"""Diff-Pruning: Taylor importance over pruned timesteps (Fang, Ma & Wang, NeurIPS 2023, arXiv 2305.10924).

Only the timesteps before the loss first falls below a fraction of its running maximum count (section 4.2): beyond them,
the losses are tiny and their gradients say little. The source uses every timestep and 128 images on CIFAR-10:
`num_timesteps=0, num_images=128`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import nn

from ..base.rules import within
from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .criterion import Criterion, ScoringConfig
from .ranking import Ranking
from .taylor import TIMESTEPS, TaylorOptions, memory_of_gradients, price_of_gradients, taylor_ranking


@dataclass(frozen=True)
class DiffPruningOptions(TaylorOptions):
    """Options of diff-pruning: those of taylor, and where to stop.

    Attributes:
        threshold: stop at the first timestep whose loss is below this fraction of the largest so far. 0.05 was best on
            CIFAR-10, 0 on CelebA, 0.01 on LSUN (section 4): look at the loss curve.
    """

    threshold: Annotated[float, within(0, 1)] = 0.05


def diff_pruning(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: DiffPruningOptions,
) -> Ranking:
    """Scores from one calibration batch and one noise tensor, which is the same at every timestep.

    Raises:
        TrainingError: a calibration loss is not finite.
    """
    return taylor_ranking(model, process, batch, structure, config, options, options.threshold)


DIFF_PRUNING = Criterion(
    "diff-pruning",
    DiffPruningOptions,
    diff_pruning,
    price_of_gradients,
    memory=memory_of_gradients,
    timesteps=TIMESTEPS,
)
