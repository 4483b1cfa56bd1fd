"""Recovery objectives: pure functions from student, teacher, process and one draw to named scalar terms.

Every term is a mean over pixels and batch, so weights mean the same at every resolution. 2ndMatch as published sums
over pixels; its terms, and its weights 1, 1 and 0.1, are those here but for one common factor, the number of pixel
values D: terms and weights here = published loss / D. (Against mean-reduced errors and a Jacobian term that is not
divided, the weight would be 0.1 / D.)

The loss is the sum of the terms by their weights. A new objective is one function here and one line in `OBJECTIVES`,
which says what the function needs; docs/adding-an-objective.md shows how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import TrainingError
from ..models.conditions import Conditions, rows
from ..models.jacobian import Projection, any_attention, frozen, higher_order, project, unit_directions
from ..models.predict import predict
from ..process.base import Process
from ..process.own import OwnObjective
from ..process.reconstruction import first_entries
from .config import RecoveryConfig
from .draws import Draw
from .sensitivity import JacobianConfig, growth_mismatch, projection_mismatch

Terms = dict[str, Tensor]
TermsFunction = Callable[[nn.Module, nn.Module | None, Process, Draw, JacobianConfig], Terms]
JACOBIAN = "jacobian"  # the term that may be left out of a step
FORWARD, TRAINING = 1, 3  # passes: a backward pass costs twice a forward one
# What a projection adds, for student and teacher, as benchmarks/recovery_cost.py counts it.
PROJECTING: dict[Projection, tuple[int, int]] = {"vjp": (3, 1), "jvp": (6, 2)}


@dataclass(frozen=True)
class Objective:
    """Terms to compute and the weight of each.

    Attributes:
        terms: computes them, by name.
        weights: of every term.
        needs_teacher: `terms` asks the teacher.
        others: of an objective that differentiates twice, for its term "jacobian": computes the other terms, for the
            steps that leave that one out; None where nothing is differentiated twice.
        jacobian: options of that term.
    """

    terms: TermsFunction
    weights: Mapping[str, float]
    needs_teacher: bool = False
    others: TermsFunction | None = None
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)

    @property
    def differentiates_twice(self) -> bool:
        return self.others is not None

    def layers(self, student: nn.Module, teacher: nn.Module | None) -> AbstractContextManager[None]:
        """What a step's forward and backward passes must run in."""
        if not self.differentiates_twice or teacher is None:
            return nullcontext()
        return higher_order((student, teacher), self.jacobian.projection)

    @property
    def balances(self) -> bool:
        return self.differentiates_twice and self.jacobian.auto_weight and self.weights[JACOBIAN] > 0

    def at(self, step: int) -> Objective:
        """The objective of optimizer step `step` (0, 1, ...): the Jacobian term is in the last of n steps, n-fold."""
        if self.others is None:
            return self
        every_n = self.jacobian.every_n
        if (step + 1) % every_n:  # counted as the log counts, so that its lines meet the term
            weights = {name: value for name, value in self.weights.items() if name != JACOBIAN}
            return replace(self, terms=self.others, weights=weights, others=None)
        return self.weighted({JACOBIAN: every_n * self.weights[JACOBIAN]})

    def weighted(self, weights: Mapping[str, float]) -> Objective:
        """The objective with `weights` in the place of its own."""
        return replace(self, weights={**self.weights, **weights})

    def scaled(self, factor: float) -> Objective:
        """The objective with `factor` times the weight of its Jacobian term, if it has one."""
        return self.weighted({name: factor * value for name, value in self.weights.items() if name == JACOBIAN})

    def loss(self, terms: Terms) -> Tensor:
        """Weighted sum of `terms`, a scalar."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def passes(self) -> tuple[float, float]:
        """Cost of one sample's step in forward passes of student and of teacher, on average over the steps."""
        share = 1 / (self.jacobian.every_n * self.jacobian.every_n_samples) if self.differentiates_twice else 0.0
        student, teacher = (
            share * self.jacobian.directions * passes for passes in PROJECTING[self.jacobian.projection]
        )
        return TRAINING + student, FORWARD + teacher if self.needs_teacher else 0.0


def denoising_terms(
    student: nn.Module, teacher: nn.Module | None, process: Process, draw: Draw, config: JacobianConfig
) -> Terms:
    """Error against the process's target: L_simple (DDPM, eq. 14), v, sample or flow velocity alike; a user's loss."""
    if isinstance(process, OwnObjective):
        return {"denoising": process.errors(student, draw.conditions).mean()}
    x_t, target = _noisy(process, draw)
    prediction = predict(student, x_t, draw.timesteps, draw.conditions)
    return {"denoising": F.mse_loss(prediction.to(target.dtype), target)}


def distillation_terms(
    student: nn.Module, teacher: nn.Module | None, process: Process, draw: Draw, config: JacobianConfig
) -> Terms:
    """`denoising_terms` and the error against the dense teacher's output on the same noisy input."""
    assert teacher is not None
    if isinstance(process, OwnObjective):
        with torch.no_grad():
            taught = process.predict(teacher, draw.conditions)
        denoising = process.errors(student, draw.conditions).mean()
        return {"denoising": denoising, "distillation": F.mse_loss(process.predict(student, draw.conditions), taught)}
    x_t, target = _noisy(process, draw)
    prediction = predict(student, x_t, draw.timesteps, draw.conditions).to(target.dtype)
    with torch.no_grad():
        taught = predict(teacher, x_t, draw.timesteps, draw.conditions).to(target.dtype)
    return {"denoising": F.mse_loss(prediction, target), "distillation": F.mse_loss(prediction, taught)}


def jacobian_terms(
    student: nn.Module,
    teacher: nn.Module | None,
    process: Process,
    draw: Draw,
    config: JacobianConfig,
    mismatch: Callable[[list[Tensor], list[Tensor]], Tensor],
) -> Terms:
    """`distillation_terms` and `mismatch` / D between the Jacobian projections of student and teacher.

    One pass of each network serves all terms; the teacher's projections are constants. With `every_n_samples` the
    other samples go through a pass of their own, without a graph of second order.
    """
    assert teacher is not None
    x_t, target = _noisy(process, draw)
    share, rest = _shares(len(x_t), config.every_n_samples, x_t.device)
    like = (x_t if config.projection == "jvp" else target)[share]
    directions = unit_directions([first_entries(draw.normal(k)[share], like) for k in range(1, config.directions + 1)])
    chosen = _at(x_t, draw, share)
    # A projection by jvp differentiates the teacher twice too.
    with frozen(teacher), any_attention() if config.projection == "vjp" else nullcontext():
        taught, projections_D = project(teacher, *chosen, directions, config.projection, create_graph=False)
    prediction, projections = project(student, *chosen, directions, config.projection)
    pairs = [(prediction, taught.detach(), target[share])]
    if len(rest):
        others = _at(x_t, draw, rest)
        with torch.no_grad(), any_attention():
            taught = predict(teacher, *others)
        pairs.append((predict(student, *others), taught, target[rest]))
    count = target.numel()
    return {
        "denoising": torch.stack([_squared_error(output, goal) for output, _, goal in pairs]).sum() / count,
        "distillation": torch.stack([_squared_error(output, taught) for output, taught, _ in pairs]).sum() / count,
        JACOBIAN: mismatch(projections, [p.detach() for p in projections_D]) / target[0].numel(),
    }


def second_match_terms(
    student: nn.Module, teacher: nn.Module | None, process: Process, draw: Draw, config: JacobianConfig
) -> Terms:
    """2ndMatch: l_np L_NP + l_kd L_KD + l_jac L_Jac (Zheng & Shlizerman 2026), each divided by D."""
    mismatch = partial(growth_mismatch, relative=config.relative)
    return jacobian_terms(student, teacher, process, draw, config, mismatch)


def first_order_terms(
    student: nn.Module, teacher: nn.Module | None, process: Process, draw: Draw, config: JacobianConfig
) -> Terms:
    """The baseline that matches J v itself, which the paper finds to add little to distillation."""
    return jacobian_terms(student, teacher, process, draw, config, projection_mismatch)


def _noisy(process: Process, draw: Draw) -> tuple[Tensor, Tensor]:
    """x_t and the process's target, (B, C, H, W) each; of a decoder, latents and image."""
    x_t = process.add_noise(draw.sample, draw.noise, draw.timesteps)
    return x_t, process.target(draw.sample, draw.noise, draw.timesteps)


def _shares(count: int, every_n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of every n-th sample, and of the others."""
    indices = torch.arange(count, device=device)
    chosen = indices % every_n == 0
    return indices[chosen], indices[~chosen]


def _at(x_t: Tensor, draw: Draw, share: Tensor) -> tuple[Tensor, Tensor, Conditions]:
    return x_t[share], draw.timesteps[share], rows(draw.conditions, share)


def _squared_error(output: Tensor, goal: Tensor) -> Tensor:
    return F.mse_loss(output.to(goal.dtype), goal, reduction="sum")


MATCHED = {"denoising": 1.0, "distillation": 1.0}
OBJECTIVES: dict[str, Objective] = {
    "denoising": Objective(denoising_terms, {"denoising": 1.0}),
    "distillation": Objective(distillation_terms, MATCHED, needs_teacher=True),
    "first-order": Objective(first_order_terms, MATCHED | {JACOBIAN: 0.1}, True, others=distillation_terms),
    "2ndmatch": Objective(second_match_terms, MATCHED | {JACOBIAN: 0.1}, True, others=distillation_terms),
}


def build_objective(config: RecoveryConfig, teacher: nn.Module | None) -> Objective:
    """The objective that `config` names, with its weights and options.

    Raises:
        TrainingError: there is no such objective or term, it needs a teacher and there is none, or there are too few
            steps for its Jacobian term to take part.
    """
    name = config.objective
    if name not in OBJECTIVES:
        raise TrainingError(f"objective {name!r} is unknown; use {', '.join(OBJECTIVES)}")
    objective = OBJECTIVES[name]
    if unknown := sorted(set(config.weights) - set(objective.weights)):
        known = ", ".join(objective.weights)
        raise TrainingError(f"objective {name} has no term {', '.join(unknown)}; its terms are {known}")
    if objective.needs_teacher and teacher is None:
        raise TrainingError(f"objective {name} needs a teacher; pass the dense model, or use denoising")
    if objective.differentiates_twice and config.steps < config.jacobian.every_n:
        every_n = f"the Jacobian term of {name} is in one step of {config.jacobian.every_n}"
        raise TrainingError(f"{every_n}, and there are {config.steps}; give more steps, or a smaller jacobian every_n")
    return replace(objective.weighted(config.weights), jacobian=config.jacobian)
