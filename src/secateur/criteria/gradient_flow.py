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

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.func import functional_call

from ..base.console import progress
from ..base.errors import TrainingError
from ..data import Batch
from ..models.conditions import Conditions, rows
from ..models.network import example_batch, inference
from ..process.base import Process, denoising_error
from ..results import LossCurve
from ..structure import Structure
from .criterion import Criterion, Memory, Options, Price, ScoringConfig
from .gradients import calibration_passes, calibration_timesteps, reshard
from .hessian_products import (
    HessianProduct,
    Loss,
    Parameters,
    local_geometry,
    norm_of,
    sharded_geometry,
)
from .memory import without_data, without_values
from .ranking import Ranking, parameters_of
from .reductions import unit_scores

EPSILON = 1e-12  # keeps the weight of a timestep without gradient finite
HESSIAN_PRODUCT = 3.0  # passes, by double backward or by differences

Mode = Literal["increase", "preserve"]
TimestepWeights = Literal["inverse-gradient", "uniform"]


@dataclass(frozen=True)
class GradientFlowOptions(Options):
    """Options of gradient-flow.

    Attributes:
        mode: preserve removes first what changes the gradient norm least; increase, what raises it most (the rule of
            Wan et al., much worse in docs/benchmarks.md).
        timestep_weights: timestep t weighs 1 / ||g_t||^2 (inverse-gradient) or 1 (uniform).
        hessian_product: compute H g by double backward (exact), or from two more gradients (finite-difference), which
            works with any attention kernel, keeps smaller graphs and more copies of the weights.
    """

    mode: Mode = "preserve"
    timestep_weights: TimestepWeights = "inverse-gradient"
    hessian_product: HessianProduct = "exact"


@dataclass(frozen=True)
class GradientFlowStatistics:
    """The quantities that the score is computed from.

    Attributes:
        timesteps, losses, gradient_norms, weights: t, L_t, ||g_t|| and w_t, from the clean end on.
        energy: E, whose gradient the product gives.
        product: sum_t w_t H_t g_t, by parameter name (tied parameters under each of their names).
    """

    timesteps: tuple[float, ...]
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    weights: tuple[float, ...]
    energy: float
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
    statistics = gradient_flow_statistics(model, process, batch, config, options)
    changes = gradient_norm_changes(model, structure, statistics.product)
    scores = {name: -values if options.mode == "increase" else values.abs() for name, values in changes.items()}
    mean_square = fmean(norm**2 for norm in statistics.gradient_norms)
    return Ranking(
        scores,
        LossCurve(statistics.timesteps, statistics.losses, len(statistics.losses)),
        facts={"energy": statistics.energy, "gradient_norm": math.sqrt(mean_square)},
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
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(config.seed))
    noise = noise.to(batch.sample)
    timesteps = calibration_timesteps(process, config.timesteps_of(process)).to(batch.sample.device)
    parameters = _in_range(model)
    in_shards = any(isinstance(parameter, DTensor) for parameter in parameters.values())
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
            losses.append(geometry.loss.item())
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    "a calibration loss is not finite: check that the model's weights and its scheduler fit together"
                )
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


def gradient_norm_changes(model: nn.Module, structure: Structure, product: Parameters) -> dict[str, Tensor]:
    """S_g of every unit (units,) and block (1,); `product` is sum_t w_t H_t g_t by parameter name."""
    changes = {name: -parameter.detach() * product[name] for name, parameter in parameters_of(model).items()}
    return unit_scores(structure, changes)


def price_of_products(model: nn.Module, process: Process, config: ScoringConfig, options: GradientFlowOptions) -> Price:
    """Price of a Hessian product at every timestep."""
    return Price(config.timesteps_of(process) * config.num_images * HESSIAN_PRODUCT)


def memory_of_products(
    model: nn.Module, process: Process, config: ScoringConfig, options: GradientFlowOptions
) -> Memory:
    """Memory of one timestep's Hessian product beside the sum over timesteps, counted on a copy without data."""
    images = min(config.num_images, 2 * config.batch_size)  # more passes take no more than two
    sample, conditions = example_batch(model, images)
    with without_data(model) as (hollow, memory):
        parameters = _in_range(hollow)
        total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        exact = next(iter(parameters.values())).dtype
        given = without_values({"sample": sample, "conditions": dict(conditions)}, exact)
        batch, noise = Batch(given["sample"], given["conditions"]), torch.empty_like(given["sample"])
        timestep = process.timesteps(torch.zeros(1))[0]
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
        return functional_call(errors, named, arguments).sum() / images

    indices = torch.arange(images, device=batch.sample.device)
    return [functools.partial(term, part) for part in indices.split(batch_size)]


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


def _in_range(model: nn.Module) -> dict[str, Tensor]:
    """The parameters in at least float32; half precision is too coarse for second derivatives."""
    return {
        name: parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
        for name, parameter in model.named_parameters()
    }


GRADIENT_FLOW = Criterion(
    "gradient-flow", GradientFlowOptions, gradient_flow, price_of_products, timesteps=32, memory=memory_of_products
)
