"""Criteria: which units matter least. One file each; docs/adding-a-criterion.md shows how to add one."""

from typing import Any

import torch
from torch import nn

from ..base.errors import require, require_known
from ..data import Batch
from ..models.registry import network_of
from ..process.base import Process
from ..results import BlockEffect, BlockReport, LossCurve
from ..structure import Structure
from .auto import AUTO
from .ced import CED, CedOptions
from .cosine import COSINE
from .criterion import Criterion, Memory, Options, Price, ScoringConfig
from .deviation import DEVIATION
from .diff_pruning import DIFF_PRUNING, DiffPruningOptions
from .ent_prog import ENT_PROG
from .gradient_flow import GRADIENT_FLOW, GradientFlowOptions
from .loss_change import LOSS_CHANGE
from .magnitude import MAGNITUDE, MagnitudeOptions
from .random import RANDOM
from .ranking import Ranking, check_finite
from .reconstruction import RECONSTRUCTION, ReconstructionOptions
from .reductions import Reduction, unit_scores
from .replacement import REPLACEMENT, ReplacementOptions
from .taylor import TAYLOR, TaylorOptions
from .uniform import UNIFORM

CRITERIA: dict[str, Criterion[Any]] = {
    criterion.name: criterion
    for criterion in (
        AUTO,
        RANDOM,
        MAGNITUDE,
        TAYLOR,
        DIFF_PRUNING,
        GRADIENT_FLOW,
        RECONSTRUCTION,
        CED,
        ENT_PROG,
        DEVIATION,
        REPLACEMENT,
        UNIFORM,
        COSINE,
        LOSS_CHANGE,
    )
}


def criterion_named(name: str) -> Criterion[Any]:
    """The criterion called `name`.

    Raises:
        SecateurError: there is none; the message gives the nearest name.
    """
    require_known("criterion", name, CRITERIA)
    return CRITERIA[name]


def score(
    model: nn.Module,
    process: Process,
    batch: Batch | None,
    structure: Structure,
    criterion: str = "diff-pruning",
    config: ScoringConfig | None = None,
) -> Ranking:
    """Rank the units and blocks of `model` by the named criterion; `batch` is None for one that needs no data.

    Raises:
        SecateurError: no such criterion or option, or images are missing.
        TrainingError: a calibration loss or a score is not finite; or weights are sharded, and gradient-flow is
            to compute exact Hessian products.
    """
    chosen, config = criterion_named(criterion), config or ScoringConfig()
    config = chosen.configured(config)
    if batch is None:
        require(not chosen.needs_data, f"criterion {criterion} needs images; give data")
        batch = Batch(torch.empty(0))
    ranking = chosen.score(network_of(model), process, batch, structure, config, config.options)
    check_finite(ranking.scores)
    return ranking


def ranking_memory(
    model: nn.Module, process: Process, criterion: str = "diff-pruning", config: ScoringConfig | None = None
) -> Memory | None:
    """Memory that ranking `model`, which may be on the meta device, takes; None if it is little more than the model.

    Raises:
        SecateurError: no such criterion or option.
    """
    chosen = criterion_named(criterion)
    config = chosen.configured(config or ScoringConfig())
    return None if chosen.memory is None else chosen.memory(model, process, config, config.options)


__all__ = [
    "CRITERIA",
    "BlockEffect",
    "BlockReport",
    "CedOptions",
    "Criterion",
    "DiffPruningOptions",
    "GradientFlowOptions",
    "LossCurve",
    "MagnitudeOptions",
    "Memory",
    "Options",
    "Price",
    "Ranking",
    "ReconstructionOptions",
    "Reduction",
    "ReplacementOptions",
    "ScoringConfig",
    "TaylorOptions",
    "criterion_named",
    "ranking_memory",
    "score",
    "unit_scores",
]
