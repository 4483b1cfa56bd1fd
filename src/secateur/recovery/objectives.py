"""Recovery objectives: pure functions from student, teacher, process and one draw to named scalar terms.

Errors are means over pixels and batch, so their weights mean the same at every resolution. The same holds for the
dimensionless Jacobian terms, relative growth and first-order. Published 2ndMatch sums errors over pixels and compares
absolute growths: its terms, with weights 1, 1 and 0.1, equal those here up to one common factor, the number of pixel
values D. So its Jacobian term falls as 1 / D relative to the others, here as there.

The loss is the weighted sum of the terms. A new objective is one function here and one line in `OBJECTIVES`, which says
what the function needs; see docs/adding-an-objective.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import TrainingError
from ..models.jacobian import Projection, any_attention, higher_order, project
from ..models.predict import predict
from ..process.base import Process
from ..process.own import OwnObjective
from ..teacher import Book, Contents, Draw, Teacher, as_teacher, at
from ..teacher.draw import directions_of
from ..teacher.hidden import hidden_states
from .config import RecoveryConfig
from .features import FeaturesConfig, feature_mismatch
from .hidden import called_with, chosen, sliced, surviving_blocks
from .reading import check_contents
from .sensitivity import JacobianConfig, growth_mismatch, projection_mismatch

T = TypeVar("T")
Terms = dict[str, Tensor]
TermsFunction = Callable[..., Terms]  # of student, teacher, process, draw and JacobianConfig
Asked = Callable[[Teacher], Callable[..., tuple[Tensor, T]]]  # which of a teacher's answers
JACOBIAN = "jacobian"  # the term that some steps may leave out
DENOISING, FEATURES = "denoising", "features"
FORWARD, TRAINING = 1, 3  # passes: a backward pass costs twice a forward one
# Cost of a projection, for student and teacher, as counted by benchmarks/recovery_cost.py.
PROJECTING: dict[Projection, tuple[int, int]] = {"vjp": (3, 1), "jvp": (6, 2)}


@dataclass(frozen=True)
class Objective:
    """Terms to compute and the weight of each.

    Attributes:
        terms: computes them, by name.
        weights: the weight of every term.
        needs_teacher: whether `terms` asks the teacher.
        terms_without_jacobian: for an objective that differentiates twice: computes all terms but "jacobian", for steps
            that leave it out. None for other objectives.
        jacobian: options of that term.
        denoising_optional: whether `terms` accepts `denoising=False`, which leaves out the term "denoising" (weight 0).
        options: fields of the recovery's config that `terms` takes by name.
    """

    terms: TermsFunction
    weights: Mapping[str, float]
    needs_teacher: bool = False
    terms_without_jacobian: TermsFunction | None = None
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)
    denoising_optional: bool = False
    options: tuple[str, ...] = ()

    @property
    def differentiates_twice(self) -> bool:
        return self.terms_without_jacobian is not None

    def layers(self, student: nn.Module, teacher: nn.Module | Teacher | None) -> AbstractContextManager[None]:
        """The context in which a step's forward and backward passes must run."""
        if not self.differentiates_twice or teacher is None:
            return nullcontext()
        network = as_teacher(teacher).network
        return higher_order([student] if network is None else [student, network], self.jacobian.projection)

    def without_denoising(self) -> Objective:
        """The objective without the process's noisy target."""
        weights = {name: value for name, value in self.weights.items() if name != DENOISING}
        simpler = replace(self, terms=partial(self.terms, denoising=False), weights=weights)
        if self.terms_without_jacobian is None:
            return simpler
        return replace(simpler, terms_without_jacobian=partial(self.terms_without_jacobian, denoising=False))

    @property
    def balances(self) -> bool:
        return self.differentiates_twice and self.jacobian.auto_weight and self.weights[JACOBIAN] > 0

    def at(self, step: int) -> Objective:
        """The objective of optimizer step `step` (0, 1, ...): every n-th step has the Jacobian term, with n times its
        weight."""
        if self.terms_without_jacobian is None:
            return self
        every_n = self.jacobian.every_n
        if (step + 1) % every_n:  # counted as in the log, so that its lines coincide with the term
            weights = {name: value for name, value in self.weights.items() if name != JACOBIAN}
            return replace(self, terms=self.terms_without_jacobian, weights=weights, terms_without_jacobian=None)
        return self.weighted({JACOBIAN: every_n * self.weights[JACOBIAN]})

    def weighted(self, weights: Mapping[str, float]) -> Objective:
        """The objective with `weights` instead of its own."""
        return replace(self, weights={**self.weights, **weights})

    def scaled(self, factor: float) -> Objective:
        """The objective with `factor` times the weight of its Jacobian term, if it has one."""
        return self.weighted({name: factor * value for name, value in self.weights.items() if name == JACOBIAN})

    def loss(self, terms: Terms) -> Tensor:
        """Weighted sum of `terms`, a scalar."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def passes(self) -> tuple[float, float]:
        """Cost of one sample's step, in forward passes of student and of teacher, averaged over the steps."""
        share = 1 / (self.jacobian.every_n * self.jacobian.every_n_samples) if self.differentiates_twice else 0.0
        student, teacher = (
            share * self.jacobian.directions * passes for passes in PROJECTING[self.jacobian.projection]
        )
        return TRAINING + student, FORWARD + teacher if self.needs_teacher else 0.0


def denoising_terms(
    student: nn.Module, teacher: nn.Module | Teacher | None, process: Process, draw: Draw, config: JacobianConfig
) -> Terms:
    """Error against the process's target: noise (L_simple, DDPM, eq. 14), v, sample or flow velocity; or the user's
    loss."""
    if isinstance(process, OwnObjective):
        return {"denoising": process.errors(student, draw.conditions).mean()}
    x_t, target = _noisy(process, draw)
    prediction = predict(student, *at(x_t, draw))
    return {"denoising": F.mse_loss(prediction.to(target.dtype), target)}


def distillation_terms(
    student: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    draw: Draw,
    config: JacobianConfig,
    denoising: bool = True,
) -> Terms:
    """The error against the dense teacher's output on the same noisy input, and `denoising_terms`."""
    assert teacher is not None
    if isinstance(process, OwnObjective):
        network = as_teacher(teacher).network
        assert network is not None
        with torch.no_grad():
            taught = process.predict(network, draw.conditions)
        terms = {"denoising": process.errors(student, draw.conditions).mean()} if denoising else {}
        return {**terms, "distillation": F.mse_loss(process.predict(student, draw.conditions), taught)}
    x_t = process.add_noise(draw.sample, draw.noise, draw.timesteps)
    prediction = predict(student, *at(x_t, draw))
    taught = as_teacher(teacher).output(x_t, draw)
    return _compared(prediction, taught, _target(process, draw) if denoising else None)


def features_terms(
    student: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    draw: Draw,
    config: JacobianConfig,
    denoising: bool = True,
    features: FeaturesConfig = FeaturesConfig(),  # noqa: B008  frozen
) -> Terms:
    """`distillation_terms`, and the mean mismatch of the hidden states of the chosen blocks; one pass of each network.

    A block that lost channels is compared on those that stayed.
    """
    assert teacher is not None
    taught_by = as_teacher(teacher)
    if taught_by.dense is None:
        raise TrainingError(
            "objective features compares blocks: its teacher is the dense network, or a book with its hidden states"
        )
    pairs = chosen(surviving_blocks(student, taught_by.dense), features.blocks)
    x_t = process.add_noise(draw.sample, draw.noise, draw.timesteps)
    taught, dense = taught_by.hidden(x_t, draw, [pair.teacher for pair in pairs])
    with hidden_states(student, [pair.student for pair in pairs]) as calls:
        prediction = predict(student, *at(x_t, draw))
    mismatches = []
    for pair in pairs:
        call, goal = calls[pair.student][0], dense[pair.teacher]
        found, channels_first = call.returned, call.returned.ndim == 4
        if features.teacher_inputs:
            # Requires an unused gradient: torch's group norm on a CPU crashes if its input requires none.
            taken = sliced(goal.taken, pair.taken, channels_first).to(call.taken.dtype).detach().requires_grad_()
            found = called_with(student, pair.student, call, taken)
        mismatches.append(
            feature_mismatch(found, sliced(goal.returned, pair.returned, channels_first), features.massive)
        )
    compared = _compared(prediction, taught, _target(process, draw) if denoising else None)
    return {**compared, FEATURES: torch.stack(mismatches).mean()}


def jacobian_terms(
    student: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    draw: Draw,
    config: JacobianConfig,
    asked: Asked[T],
    mismatch: Callable[[list[Tensor], T], Tensor],
    denoising: bool = True,
) -> Terms:
    """`distillation_terms`, and the `mismatch` between the student's Jacobian projections and the teacher's answer to
    `asked`.

    One pass of each network serves all terms; the teacher's answers are constants. With `every_n_samples` the other
    samples take a separate pass, without a second-order graph.
    """
    assert teacher is not None
    taught_by = as_teacher(teacher)
    x_t, target = _noisy(process, draw)
    share, rest = _shares(len(x_t), config.every_n_samples, x_t.device)
    like = (x_t if config.projection == "jvp" else target)[share]
    directions = directions_of(draw, like, config.directions, share)
    taught, answer = asked(taught_by)(x_t, draw, share, directions, config.projection)
    prediction, projections = project(student, *at(x_t, draw, share), directions, config.projection)
    pairs, targets = [(prediction, taught)], [target[share]]
    if len(rest):
        with any_attention():
            taught = taught_by.output(x_t, draw, rest)
        pairs.append((predict(student, *at(x_t, draw, rest)), taught))
        targets.append(target[rest])
    count = target.numel()
    terms = {
        "denoising": torch.stack(
            [_squared_error(output, goal) for (output, _), goal in zip(pairs, targets, strict=True)]
        ).sum()
        / count,
        "distillation": torch.stack([_squared_error(output, taught) for output, taught in pairs]).sum() / count,
        JACOBIAN: mismatch(projections, answer),
    }
    return terms if denoising else {name: value for name, value in terms.items() if name != "denoising"}


def second_match_terms(
    student: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    draw: Draw,
    config: JacobianConfig,
    denoising: bool = True,
) -> Terms:
    """2ndMatch: l_np L_NP + l_kd L_KD + l_jac L_Jac (Zheng & Shlizerman 2026), each divided by D.

    The relative form of L_Jac is dimensionless already, and is not divided.
    """
    divisor = 1 if config.relative else process.target(draw.sample, draw.noise, draw.timesteps)[0].numel()

    def mismatch(projections: list[Tensor], taught: Tensor) -> Tensor:
        return growth_mismatch(projections, taught, config.relative) / divisor

    asked: Asked[Tensor] = attrgetter("growth")
    return jacobian_terms(student, teacher, process, draw, config, asked, mismatch, denoising)


def first_order_terms(
    student: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    draw: Draw,
    config: JacobianConfig,
    denoising: bool = True,
) -> Terms:
    """The baseline that matches J v itself, which the paper finds to add little to distillation."""
    asked: Asked[list[Tensor]] = attrgetter("projections")
    return jacobian_terms(student, teacher, process, draw, config, asked, projection_mismatch, denoising)


def _noisy(process: Process, draw: Draw) -> tuple[Tensor, Tensor]:
    """x_t and the process's target, (B, C, H, W) each; of a decoder, latents and image."""
    return process.add_noise(draw.sample, draw.noise, draw.timesteps), _target(process, draw)


def _target(process: Process, draw: Draw) -> Tensor:
    return process.target(draw.sample, draw.noise, draw.timesteps)


def _compared(prediction: Tensor, taught: Tensor, target: Tensor | None) -> Terms:
    """Mean squared errors against the process's target, if that has a weight, and against the teacher's output."""
    like = taught if target is None else target
    prediction = prediction.to(like.dtype)
    terms = {} if target is None else {"denoising": F.mse_loss(prediction, target)}
    return {**terms, "distillation": F.mse_loss(prediction, taught.to(like.dtype))}


def _shares(count: int, every_n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of every n-th sample, and of the others."""
    chosen = [place for place in range(count) if place % every_n == 0]
    others = [place for place in range(count) if place % every_n]
    return torch.tensor(chosen, device=device), torch.tensor(others, dtype=torch.int64, device=device)


def _squared_error(output: Tensor, goal: Tensor) -> Tensor:
    return F.mse_loss(output.to(goal.dtype), goal, reduction="sum")


MATCHED = {"denoising": 1.0, "distillation": 1.0}
OBJECTIVES: dict[str, Objective] = {
    "denoising": Objective(denoising_terms, {"denoising": 1.0}),
    "distillation": Objective(distillation_terms, MATCHED, needs_teacher=True, denoising_optional=True),
    "features": Objective(
        features_terms, MATCHED | {FEATURES: 1.0}, needs_teacher=True, denoising_optional=True, options=("features",)
    ),
    "first-order": Objective(
        first_order_terms, MATCHED | {JACOBIAN: 0.1}, True, distillation_terms, denoising_optional=True
    ),
    "2ndmatch": Objective(
        second_match_terms, MATCHED | {JACOBIAN: 0.1}, True, distillation_terms, denoising_optional=True
    ),
}


def asking_passes(contents: Contents) -> float:
    """Cost of recording one tuple of a book, in forward passes of the teacher."""
    return FORWARD + contents.directions * PROJECTING[contents.projection][1]


def needs_teacher(name: str) -> bool:
    """Whether the objective `name` exists and needs the dense model."""
    return name in OBJECTIVES and OBJECTIVES[name].needs_teacher


def build_objective(config: RecoveryConfig, teacher: nn.Module | Teacher | None) -> Objective:
    """The objective that `config` names, with its weights and options.

    Raises:
        TrainingError: there is no such objective or term, it needs a teacher and there is none, or there are too few
            steps for its Jacobian term to occur.
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
    if objective.needs_teacher and isinstance(teacher, Book):
        check_contents(teacher, config)
    if objective.differentiates_twice and config.steps < config.jacobian.every_n:
        every_n = f"the Jacobian term of {name} is in one step of {config.jacobian.every_n}"
        raise TrainingError(f"{every_n}, and there are {config.steps}; give more steps, or a smaller jacobian every_n")
    built = replace(objective.weighted(config.weights), jacobian=config.jacobian)
    if built.options:
        built = replace(built, terms=partial(built.terms, **{name: getattr(config, name) for name in built.options}))
    leaves_out = built.denoising_optional and built.weights[DENOISING] == 0
    return built.without_denoising() if leaves_out else built
