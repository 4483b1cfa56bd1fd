"""What a ranking by each criterion costs, in forward and backward passes of one image."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ..models.registry import describe
from ..process.base import Process
from .blocks.drops import passes_of
from .blocks.measure import bins_of
from .config import CriterionName, ScoringConfig
from .diff_pruning import calibration_timesteps
from .gradient_flow import timestep_count

Cost = Callable[[nn.Module, Process, ScoringConfig], float]

FORWARD_SHARE = 1 / 3  # a forward pass costs about a third of both
HESSIAN_PRODUCT = 3.0  # a Hessian product costs about three of both, by double backward or by differences


def _nothing(model: nn.Module, process: Process, config: ScoringConfig) -> float:
    return 0.0


def _gradients(model: nn.Module, process: Process, config: ScoringConfig) -> float:
    """A gradient at every timestep, after a loss there."""
    return len(calibration_timesteps(process, config.num_timesteps)) * config.num_images * (1 + FORWARD_SHARE)


def _products(model: nn.Module, process: Process, config: ScoringConfig) -> float:
    """A Hessian product at every timestep."""
    return timestep_count(process, config) * config.num_images * HESSIAN_PRODUCT


def _looks(model: nn.Module, process: Process, config: ScoringConfig) -> float:
    """A forward pass in every bin of timesteps."""
    return bins_of(process, config) * config.num_images * FORWARD_SHARE


def _drops(model: nn.Module, process: Process, config: ScoringConfig) -> float:
    """As `_looks`, and again without each block."""
    return passes_of(describe(model)) * _looks(model, process, config)


COSTS: dict[CriterionName, Cost] = {
    "random": _nothing,
    "magnitude": _nothing,
    "taylor": _gradients,
    "diff-pruning": _gradients,
    "gradient-flow": _products,
    "ced": _drops,
    "deviation": _drops,
    "uniform": _nothing,
    "cosine": _looks,
    "loss-change": _drops,
}
