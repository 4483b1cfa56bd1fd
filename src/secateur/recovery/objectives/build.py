"""The objective of a recovery, from its settings."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn

from ...base.errors import TrainingError
from ...teacher import Book, Teacher
from ..config import RecoveryConfig
from ..reading import check_contents
from . import OBJECTIVES, objective_named
from .objective import DENOISING_TERM, Objective


def needs_teacher(name: str) -> bool:
    """Whether the objective `name` exists and needs the dense model."""
    return name in OBJECTIVES and OBJECTIVES[name].needs_teacher


def can_leave_out_noise(name: str) -> bool:
    """Whether the objective `name` exists and can do without the noisy target."""
    return name in OBJECTIVES and OBJECTIVES[name].denoising_optional


def build_objective(config: RecoveryConfig, teacher: nn.Module | Teacher | None) -> Objective:
    """The objective that `config` names, with its weights and options.

    Raises:
        SecateurError: there is no such objective.
        TrainingError: it has no such term, it needs a teacher and there is none, there is a book and it reads none, or
            there are too few steps for its Jacobian term to occur.
    """
    name, objective = config.objective, objective_named(config.objective)
    if unknown := sorted(set(config.weights) - set(objective.weights)):
        known = ", ".join(objective.weights)
        raise TrainingError(f"objective {name} has no term {', '.join(unknown)}; its terms are {known}")
    if objective.needs_teacher and teacher is None:
        raise TrainingError(f"objective {name} needs a teacher; pass the dense model, or use denoising")
    if isinstance(teacher, Book):
        if not objective.needs_teacher:
            raise TrainingError(f"objective {name} reads no book; leave the book out, or use distillation")
        check_contents(teacher, config)
    if objective.differentiates_twice and config.steps < config.jacobian.every_n:
        every_n = f"the Jacobian term of {name} is in one step of {config.jacobian.every_n}"
        raise TrainingError(f"{every_n}, and there are {config.steps}; give more steps, or a smaller jacobian every_n")
    built = replace(objective.weighted(config.weights), jacobian=config.jacobian)
    if built.options:
        built = replace(built, terms=partial(built.terms, **{name: getattr(config, name) for name in built.options}))
    leaves_out = built.denoising_optional and built.weights[DENOISING_TERM] == 0
    return built.without_denoising() if leaves_out else built
