"""Gradient flow, after Wan et al. (ICASSP 2025, arXiv 2501.09464): removes what hinders fast convergence.

From the paper: prune the parameters whose removal raises the gradient norm of the loss, while masks follow the gradient
flow of an energy made from that criterion. Reconstructed here: the first-order change below (as in GraSP, Wang et al.
2020, arXiv 2002.07376), timesteps scored one by one, their weights, and groups summed with their signs.

With g_t, H_t the gradient and Hessian of the loss L_t at timestep t, removing the parameters P_g of group g changes
1/2 sum_t w_t ||g_t||^2 to first order by

    S_g = - sum_{q in P_g} theta_q sum_t w_t (H_t g_t)_q.

Timesteps are kept separate because the gradient of the summed loss nearly vanishes at a converged model. S is also
dE/dm of an energy at m = 1, where g_t is taken with respect to the weights m theta: E(m) = -1/2 sum_t ||g_t(m
theta)||^2 with w_t = 1, and E(m) = -1/2 sum_t log ||g_t(m theta)||^2 with w_t = 1 / ||g_t||^2, in which every
timestep counts equally.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..base.console import progress
from ..base.errors import TrainingError
from ..base.shards import is_sharded, reshard
from ..data import Batch
from ..models.conditions import Conditions, rows
from ..models.network import example_batch, inference
from ..models.recomputing import can_recompute, keeping_activations, recomputing
from ..models.registry import describe
from ..process.base import Process, denoising_error
from ..results import LossCurve
from ..structure import Structure
from .criterion import Criterion, Memory, Options, Price, ScoringConfig
from .gradients import calibration_passes, calibration_timesteps, differentiable, stream_gradients
from .hessian_products import (
    HessianProduct,
    Loss,
    Parameters,
    Weights,
    kept_gradient,
    local_geometry,
    movable,
    norm_of,
    sharded_geometry,
    stream_products,
)
from .memory import without_data, without_values
from .ranking import Ranking, parameters_of
from .reductions import StreamedSums, scores_of, unit_scores

EPSILON = 1e-12  # keeps the weight of a timestep without gradient finite
HESSIAN_PRODUCT = 3.0  # passes, by double backward or by differences
RECOMPUTED = 4 / 3  # passes that compute activations again, over those that keep them

Mode = Literal["increase", "preserve"]
TimestepWeights = Literal["inverse-gradient", "uniform"]


@dataclass(frozen=True)
class GradientFlowOptions(Options):
    """Options of gradient-flow.

    Attributes:
        mode: preserve removes first what changes the gradient norm least; increase, what raises it most (the rule of
            Wan et al., much worse in docs/benchmarks.md).
        timestep_weights: timestep t weighs 1 / ||g_t||^2 (inverse-gradient) or 1 (uniform).
        hessian_product: compute H g by double backward (exact); or from two more gradients (finite-difference), which
            works with any attention kernel, keeps smaller graphs and more copies of the weights; or so with each
            gradient reduced to scores as it arrives and activations computed again (streamed), which for large models
            takes by far the least memory: the device holds the weights in float32, the CPU a copy and a gradient.
    """

    mode: Mode = "preserve"
    timestep_weights: TimestepWeights = "inverse-gradient"
    hessian_product: HessianProduct = "exact"


@dataclass(frozen=True)
class Flow:
    """Losses and gradients at the calibration timesteps.

    Attributes:
        timesteps, losses, gradient_norms, weights: t, L_t, ||g_t|| and w_t, from the clean end on.
        energy: E, of which the scores are derivatives.
    """

    timesteps: tuple[float, ...]
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    weights: tuple[float, ...]
    energy: float


@dataclass(frozen=True)
class GradientFlowStatistics(Flow):
    """The quantities that the score is computed from; `product` is sum_t w_t H_t g_t, by parameter name (tied
    parameters under each of their names)."""

    product: Parameters


def gradient_flow(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: GradientFlowOptions,
) -> Ranking:
    """-S, so that what raises the gradient norm most is removed first ("increase"), or |S| ("preserve").

    Raises:
        TrainingError: a calibration loss is not finite.
    """
    flow: Flow
    if options.hessian_product == "streamed" and not is_sharded(model):
        flow, changes = streamed_changes(model, process, batch, structure, config, options)
    else:
        flow = statistics = gradient_flow_statistics(model, process, batch, config, options)
        changes = gradient_norm_changes(model, structure, statistics.product)
    scores = {name: -values if options.mode == "increase" else values.abs() for name, values in changes.items()}
    mean_square = fmean(norm**2 for norm in flow.gradient_norms)
    return Ranking(
        scores,
        LossCurve(flow.timesteps, flow.losses, len(flow.losses)),
        facts={"energy": flow.energy, "gradient_norm": math.sqrt(mean_square)},
    )


def gradient_flow_statistics(
    model: nn.Module,
    process: Process,
    batch: Batch,
    config: ScoringConfig,
    options: GradientFlowOptions,
) -> GradientFlowStatistics:
    """Losses, gradient norms and sum_t w_t H_t g_t from one batch and one noise tensor, the same at every timestep.

    Inside `masked` they are those of the masked model, differentiated with respect to the unmasked weights. Derivatives
    of units with mask 0 vanish, so with 0/1 masks the remaining units have the S of the model after removal (up to the
    rescaled queries of single-head attention). A mask between 0 and 1 shrinks the terms of its unit, whose score is
    then closer to 0. The mask is a constant: differentiating through it would add terms in g^2.

    Args:
        model: in any mode, frozen or not; it does not change.
        process: how the model was trained.
        batch: calibration images; L_t is their mean loss.
        config: number of timesteps, pairs per pass, and the seed of the noise.
        options: weights of timesteps, and how to compute H g.

    Raises:
        TrainingError: a calibration loss is not finite; or weights are sharded (FSDP2), and in half precision or to be
            differentiated twice.
    """
    reshard(model)
    noise, timesteps = _noise(batch, config), _timesteps(process, batch, config)
    parameters, in_shards = _in_range(model), is_sharded(model)
    if in_shards:
        check_shards(model, options)
    losses, norms, used = [], [], []
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    with inference(model), progress("calibration curvature", len(timesteps)) as advance:
        for timestep in timesteps:
            if in_shards:
                passes = calibration_passes(model, process, batch, noise, timestep[None], config.batch_size)
                geometry = sharded_geometry(model, passes)
            else:
                terms = loss_terms(model, process, batch, noise, timestep, config.batch_size)
                geometry = local_geometry(terms, parameters, options.hessian_product)
            losses.append(_finite(geometry.loss))
            norms.append(norm_of(geometry.gradient).item())
            used.append(timestep_weight(norms[-1], options.timestep_weights))
            for name, term in geometry.product.items():
                total[name].add_(term, alpha=used[-1])
            del geometry, term  # before the next ones are computed
            advance(1, "")
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    product = {name: total[canonical[id(parameter)]] for name, parameter in parameters_of(model).items()}
    level = energy(norms, options.timestep_weights)
    return GradientFlowStatistics(tuple(timesteps.tolist()), tuple(losses), tuple(norms), tuple(used), level, product)


def streamed_changes(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: GradientFlowOptions,
) -> tuple[Flow, dict[str, Tensor]]:
    """As `gradient_flow_statistics` by finite differences with `gradient_norm_changes`, of which no product is kept.

    Raises:
        TrainingError: a calibration loss is not finite.
    """
    noise, timesteps, sums = _noise(batch, config), _timesteps(process, batch, config), StreamedSums(model, structure)
    losses, norms, used = [], [], []
    watched = progress("calibration curvature", len(timesteps))
    with inference(model), recomputing(model, can_recompute(model)), movable(model) as weights, watched as advance:
        for timestep in timesteps:
            passes = calibration_passes(model, process, batch, noise, timestep[None], config.batch_size)
            with differentiable(model):
                loss, gradient = kept_gradient(model, passes)
                losses.append(_finite(loss))
                norms.append(norm_of(gradient).item())
                used.append(timestep_weight(norms[-1], options.timestep_weights))
                stream_products(model, passes, weights, gradient, partial(_add_changes, sums, weights, used[-1]))
                with torch.no_grad():
                    for parameter, value in weights.items():
                        parameter.copy_(value)
            del gradient  # before the next one is computed
            advance(1, "")
    level = energy(norms, options.timestep_weights)
    flow = Flow(tuple(timesteps.tolist()), tuple(losses), tuple(norms), tuple(used), level)
    return flow, scores_of(structure, sums.in_order(), "abs")


def _add_changes(
    sums: StreamedSums, weights: Weights, timestep_weight: float, parameter: nn.Parameter, product: Tensor
) -> None:
    change = product.mul_(weights[parameter].to(product)).mul_(-timestep_weight)
    for name in sums.names[parameter]:
        sums.add(name, change)


def gradient_norm_changes(model: nn.Module, structure: Structure, product: Parameters) -> dict[str, Tensor]:
    """S_g of every unit (units,) and block (1,); `product` is sum_t w_t H_t g_t by parameter name."""
    changes = {name: -parameter.detach() * product[name] for name, parameter in parameters_of(model).items()}
    return unit_scores(structure, changes)


def price_of_products(
    model: nn.Module, process: Process, structure: Structure, config: ScoringConfig, options: GradientFlowOptions
) -> Price:
    """Price of a Hessian product at every timestep."""
    again = RECOMPUTED if options.hessian_product == "streamed" and can_recompute(model) else 1.0
    return Price(config.timesteps_of(process) * config.num_images * HESSIAN_PRODUCT * again)


def memory_of_products(
    model: nn.Module, process: Process, config: ScoringConfig, options: GradientFlowOptions
) -> Memory:
    """Memory of one timestep's Hessian product beside the sum over timesteps, counted on a copy without data; of
    "streamed", of one of its passes, without what is on the CPU."""
    images = min(config.num_images, 2 * config.batch_size)  # more passes take no more than two
    sample, conditions = example_batch(model, images)
    with without_data(model) as (hollow, memory):
        exact = torch.promote_types(next(hollow.parameters()).dtype, torch.float32)
        given = without_values({"sample": sample, "conditions": dict(conditions)}, exact)
        batch, noise = Batch(given["sample"], given["conditions"]), torch.empty_like(given["sample"])
        timestep = process.timesteps(torch.zeros(1))[0]
        if options.hessian_product == "streamed":
            for parameter in hollow.parameters():
                parameter.data = parameter.data.to(exact)
            sums, weights = StreamedSums(hollow, describe(model)), {each: each.detach() for each in hollow.parameters()}
            passes = calibration_passes(hollow, process, batch, noise, timestep[None], config.batch_size)
            with differentiable(hollow), recomputing(hollow, can_recompute(hollow)):
                for _ in range(2):  # a step before and after; the sums are there at the second
                    stream_gradients(hollow, passes, partial(_add_changes, sums, weights, 1.0))
            return Memory(memory.peak)
        parameters = _in_range(hollow)
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        terms = loss_terms(hollow, process, batch, noise, timestep, config.batch_size)
        geometry = local_geometry(terms, parameters, options.hessian_product)
        for name, product in geometry.product.items():
            total[name].add_(product)
        return Memory(memory.peak)


def energy(gradient_norms: Sequence[float], kind: TimestepWeights) -> float:
    """E = -1/2 sum_t ||g_t||^2, or with inverse-gradient weights -1/2 sum_t log(eps + ||g_t||^2)."""
    squares = [norm**2 for norm in gradient_norms]
    return -0.5 * sum(squares if kind == "uniform" else (math.log(EPSILON + square) for square in squares))


def timestep_weight(gradient_norm: float, kind: TimestepWeights) -> float:
    """w_t: 1, or 1 / (eps + ||g_t||^2), with which S is the change of 1/2 sum_t log(eps + ||g_t||^2)."""
    return 1.0 if kind == "uniform" else 1 / (EPSILON + gradient_norm**2)


def loss_terms(
    model: nn.Module, process: Process, batch: Batch, noise: Tensor, timestep: Tensor, batch_size: int
) -> list[Loss]:
    """Functions of the parameters, one for every `batch_size` images, whose sum is the mean loss at `timestep` ()."""
    errors = _Errors(model, process)
    images = len(batch.sample)

    def term(part: Tensor, parameters: Parameters) -> Tensor:
        named = {f"model.{name}": parameter for name, parameter in parameters.items()}
        arguments = (batch.sample[part], noise[part], timestep.expand(len(part)), rows(batch.conditions, part))
        with keeping_activations(model):  # the backward pass would recompute them with the model's own parameters
            return functional_call(errors, named, arguments).sum() / images

    indices = torch.arange(images, device=batch.sample.device)
    return [partial(term, part) for part in indices.split(batch_size)]


class _Errors(nn.Module):
    """The denoising errors (B,) as a module, so that it can be called with other parameters."""

    def __init__(self, model: nn.Module, process: Process) -> None:
        super().__init__()
        self.model = model
        self.process = process

    def forward(self, sample: Tensor, noise: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        return denoising_error(self.model, self.process, sample, noise, timesteps, conditions)


def check_shards(model: nn.Module, options: GradientFlowOptions) -> None:
    """Refuse what cannot be computed from shards: gathered weights have no second derivative by the shards."""
    if options.hessian_product == "exact":
        raise TrainingError(
            "weights in shards cannot be differentiated twice; give --scoring.options.hessian-product finite-difference"
        )
    if any(parameter.itemsize < 4 for parameter in model.parameters()):
        raise TrainingError("gradient-flow moves the weights by less than half precision resolves; shard float32 ones")


def _noise(batch: Batch, config: ScoringConfig) -> Tensor:
    """The noise of all timesteps."""
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(config.seed))
    return noise.to(batch.sample)


def _timesteps(process: Process, batch: Batch, config: ScoringConfig) -> Tensor:
    return calibration_timesteps(process, config.timesteps_of(process)).to(batch.sample.device)


def _finite(loss: Tensor) -> float:
    """The value of a loss.

    Raises:
        TrainingError: it is not finite.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise TrainingError(
            "a calibration loss is not finite: check that the model's weights and its scheduler fit together"
        )
    return value


def _in_range(model: nn.Module) -> dict[str, Tensor]:
    """The parameters in at least float32; half precision is too coarse for second derivatives."""
    return {
        name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
        for name, parameter in model.named_parameters()
    }


GRADIENT_FLOW = Criterion(
    "gradient-flow", GradientFlowOptions, gradient_flow, price_of_products, timesteps=32, memory=memory_of_products
)
