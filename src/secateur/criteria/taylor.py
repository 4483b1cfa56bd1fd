"""Taylor importance: first-order terms w * grad of the denoising losses, summed over timesteps and coupled slices.

Molchanov et al. (CVPR 2019, arXiv 1906.10771, eq. 8) on the coupled groups of Diff-Pruning (Fang, Ma & Wang, NeurIPS
2023, arXiv 2305.10924, eq. 5), which does the same over fewer timesteps (`diff_pruning`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..base.console import progress
from ..base.shards import reshard
from ..data import Batch
from ..models.network import example_inputs, inference
from ..models.predict import output_of
from ..models.registry import describe
from ..process.base import Process
from ..results import LossCurve
from ..structure import Structure
from ..structure.repeats import Repeats, left_out, once
from .criterion import FORWARD_SHARE, Criterion, Memory, Options, Price, ScoringConfig
from .gradients import (
    calibration_passes,
    calibration_timesteps,
    differentiable,
    in_range,
    stream_gradients,
    timestep_losses,
    used_timesteps,
)
from .memory import peak_of_batch, without_data, without_values
from .ranking import Ranking
from .reductions import Reduction, StreamedSums, Sums, reduced, scores_of

# The default. The source uses all 1000, which select no better units (docs/benchmarks.md).
TIMESTEPS = 32

TimestepReduction = Literal["sum-then-abs", "abs-then-sum"]


@dataclass(frozen=True)
class TaylorOptions(Options):
    """Options of taylor.

    Attributes:
        timestep_reduction: sum over timesteps before the absolute value (sum-then-abs, the released code) or after it
            (abs-then-sum, the paper's formula). The latter takes a backward pass for every timestep, but if all images
            fit into one pass it needs no sums of gradients, which are as large as the weights in float32.
        reduction: which entries of a unit count, and how: the sum of |w g| (abs) or of (w g)^2 (square) over all of
            them; or as in the released code of Diff-Pruning: ddpm-prune (|w g| of layers' weights only, divided by the
            mean of the group) or ddpm-exp, used for the paper's tables ((w g)^2 of layers and |w g| of norms, no
            biases).
    """

    timestep_reduction: TimestepReduction = "sum-then-abs"
    reduction: Reduction = "abs"


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
    """Scores from one calibration batch and one noise tensor, the same at every timestep, up to the stop at
    `threshold`.

    Raises:
        TrainingError: a calibration loss is not finite.
    """
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(config.seed))
    noise = noise.to(batch.sample)
    timesteps = calibration_timesteps(process, config.timesteps_of(process)).to(batch.sample.device)
    with inference(model), differentiable(model), in_range(model):
        losses = timestep_losses(model, process, batch, noise, timesteps, threshold, config.batch_size)
        used = used_timesteps(losses, threshold)
        reshard(model)
        sums = taylor_sums(model, process, batch, structure, noise, timesteps[:used], config.batch_size, options)
    curve = LossCurve(tuple(timesteps[: len(losses)].tolist()), tuple(losses), used)
    return Ranking(scores_of(structure, sums, options.reduction), curve)


def taylor_sums(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    noise: Tensor,
    timesteps: Tensor,
    batch_size: int,
    options: TaylorOptions,
) -> Sums:
    """Sums of |w g| or (w g)^2 of every parameter, from which the scores of units and blocks are computed.

    The gradient of a sum over timesteps does not depend on how they are batched, so with "sum-then-abs" (image,
    timestep) pairs share batches; "abs-then-sum" takes one gradient per timestep.
    """
    taken = TermSums(model, structure, options.reduction)
    at_once = 1 if options.timestep_reduction == "abs-then-sum" else len(timesteps)
    with progress("calibration gradients", len(timesteps)) as advance:
        for chunk in timesteps.split(at_once):
            stream_gradients(model, calibration_passes(model, process, batch, noise, chunk, batch_size, advance), taken)
    return taken.in_order()


class TermSums(StreamedSums):
    """Adds up the importance w g (`reduced`) as gradients arrive."""

    def __init__(self, model: nn.Module, structure: Structure, reduction: Reduction) -> None:
        super().__init__(model, structure)
        self.model, self.reduction = model, reduction

    def __call__(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        for name in self.names[parameter]:
            importance = reduced(parameter.detach() * gradient, self.model, name, self.reduction)
            if importance is not None:
                self.add(name, importance)


def price_of_gradients(
    model: nn.Module, process: Process, structure: Structure, config: ScoringConfig, options: TaylorOptions
) -> Price:
    """Price of a loss and a gradient at every timestep."""
    return Price(config.timesteps_of(process) * config.num_images * (1 + FORWARD_SHARE))


def memory_of_gradients(model: nn.Module, process: Process, config: ScoringConfig, options: TaylorOptions) -> Memory:
    """Memory of the backward passes, counted on a copy without data.

    Gradients are summed over passes in float32 (for bfloat16 weights, twice their bytes): over timesteps with
    "sum-then-abs", and over images if they exceed a pass. "abs-then-sum" with images that fit into a pass keeps one
    parameter's gradient at a time.
    """
    timesteps = 1 if options.timestep_reduction == "abs-then-sum" else config.timesteps_of(process)
    images = min(config.num_images, config.batch_size)
    at_once = min(timesteps, config.batch_size // images)
    is_one_pass = config.num_images == images and timesteps == at_once
    peak = peak_of_batch(model, partial(_peak, model, is_one_pass, options.reduction), images * at_once)
    if is_one_pass:
        return Memory(peak)
    sums = sum(parameter.numel() * max(parameter.element_size(), 4) for parameter in model.parameters())
    hint = "--scoring.options.timestep-reduction abs-then-sum, with no more images than --scoring.batch-size"
    return Memory(peak, sums, hint)


def _peak(model: nn.Module, is_one_pass: bool, reduction: Reduction, batch_size: int) -> int:
    structure, inputs = describe(model), example_inputs(model, batch_size)

    def count(found: Repeats) -> int:
        with without_data(model) as (hollow, memory), differentiable(hollow), in_range(hollow):
            given = without_values(inputs, next(hollow.parameters()).dtype)

            def loss() -> Tensor:
                outputs = tree_leaves(output_of(hollow, given))  # one for each sample of a model of lists (Z-Image)
                return torch.stack([each.float().square().mean() for each in outputs]).sum()

            with left_out(hollow, structure, found, memory):
                taken = TermSums(hollow, structure, reduction)
                stream_gradients(hollow, [loss] if is_one_pass else [loss, loss], taken)
            return memory.peak

    return once(model, structure, count)


TAYLOR = Criterion("taylor", TaylorOptions, taylor, price_of_gradients, memory=memory_of_gradients, timesteps=TIMESTEPS)
