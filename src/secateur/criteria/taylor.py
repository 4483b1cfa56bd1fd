"""Taylor importance: first-order terms w * grad of the denoising losses, summed over timesteps and coupled slices.

Molchanov et al. (CVPR 2019, arXiv 1906.10771, eq. 8) on the coupled groups of Diff-Pruning (Fang, Ma & Wang, NeurIPS
2023, arXiv 2305.10924, eq. 5), which is the same computation over fewer timesteps (`diff_pruning`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..base.console import progress
from ..data import Batch
from ..models.network import inference
from ..process.base import Process
from ..structure import Structure
from .criterion import FORWARD_SHARE, Criterion, Options, Price, ScoringConfig
from .gradients import (
    calibration_timesteps,
    differentiable,
    in_range,
    summed_gradients,
    timestep_losses,
    used_timesteps,
)
from .ranking import (
    ElementReduction,
    GroupReduction,
    LossCurve,
    Ranking,
    parameters_of,
    reduce_elements,
    unit_scores,
)

TimestepReduction = Literal["sum-then-abs", "abs-then-sum"]


@dataclass(frozen=True)
class TaylorOptions(Options):
    """Options of taylor.

    Attributes:
        timestep_reduction: gradients summed over timesteps before the absolute value (the released code) or after it
            (the paper's formula), which takes one backward pass per timestep.
        element_reduction: abs or square of each w g.
        group_reduction: sum over a unit's entries, or mean per layer normalized by the layer's own mean.
    """

    timestep_reduction: TimestepReduction = "sum-then-abs"
    element_reduction: ElementReduction = "abs"
    group_reduction: GroupReduction = "sum"


def taylor(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: TaylorOptions,
) -> Ranking:
    """Scores over all timesteps.

    Raises:
        TrainingError: a calibration loss is not finite.
    """
    return taylor_ranking(model, process, batch, structure, config, options, threshold=0.0)


def taylor_ranking(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: TaylorOptions,
    threshold: float,
) -> Ranking:
    """Scores from one calibration batch and one noise tensor, kept for every timestep up to the stop at `threshold`.

    Raises:
        TrainingError: a calibration loss is not finite.
    """
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(config.seed))
    noise = noise.to(batch.sample)
    timesteps = calibration_timesteps(process, config.num_timesteps).to(batch.sample.device)
    with inference(model), in_range(model):
        losses = timestep_losses(model, process, batch, noise, timesteps, threshold, config.batch_size)
        used = used_timesteps(losses, threshold)
        with differentiable(model):
            importance = taylor_importance(model, process, batch, noise, timesteps[:used], config.batch_size, options)
    curve = LossCurve(tuple(timesteps[: len(losses)].tolist()), tuple(losses), used)
    return Ranking(unit_scores(structure, importance, options.group_reduction), curve)


def taylor_importance(
    model: nn.Module,
    process: Process,
    batch: Batch,
    noise: Tensor,
    timesteps: Tensor,
    batch_size: int,
    options: TaylorOptions,
) -> dict[str, Tensor]:
    """Importance of every parameter entry from |w g| or (w g)^2.

    The gradient of a sum over timesteps is the same whether they run one by one or together, so with "sum-then-abs"
    (image, timestep) pairs share batches; "abs-then-sum" takes one gradient per timestep.
    """
    parameters = parameters_of(model)
    chunks = timesteps.split(1 if options.timestep_reduction == "abs-then-sum" else len(timesteps))
    total: dict[str, Tensor] = {}
    with progress("calibration gradients", len(timesteps)) as advance:
        for chunk in chunks:
            gradients = summed_gradients(model, process, batch, noise, chunk, batch_size, advance)
            for name, gradient in gradients.items():
                importance = reduce_elements(parameters[name].detach() * gradient, options.element_reduction)
                total[name] = total[name] + importance if name in total else importance
    return total


def price_of_gradients(model: nn.Module, process: Process, config: ScoringConfig, options: TaylorOptions) -> Price:
    """Of a loss and a gradient at every timestep."""
    timesteps = len(calibration_timesteps(process, config.num_timesteps))
    return Price(timesteps * config.num_images * (1 + FORWARD_SHARE))


TAYLOR = Criterion("taylor", TaylorOptions, taylor, price_of_gradients)
