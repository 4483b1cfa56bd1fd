"""Hidden-state distillation: outputs of blocks are compared with those of the same blocks of the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ...base.errors import TrainingError
from ...base.rules import above, check_fields
from ...models.jacobian import exact
from ...models.predict import predict
from ...process.base import Process
from ...process.own import OwnObjective
from ...teacher import Draw, Teacher, as_teacher, at
from ...teacher.hidden import hidden_states
from ..hidden import called_with, chosen, sliced, surviving_blocks
from .denoising import target_of
from .distillation import compared
from .objective import MATCHED, JacobianConfig, Objective, Terms

FLOOR = 1e-8  # smallest variance to divide by, for a nearly constant state


@dataclass(frozen=True)
class FeaturesConfig:
    """Options of the objective features.

    Attributes:
        blocks: glob patterns over the dense model's blocks to compare, as named by `secateur inspect`; removed blocks
            are skipped.
        massive: leave out the teacher's activations further than this many standard deviations from the mean of their
            hidden state, a few of which would outweigh all others; None: keep all.
        teacher_inputs: feed each block the teacher's hidden state, so that it learns its own task instead of correcting
            the blocks before it; the student's output then takes a separate pass.
    """

    blocks: tuple[str, ...] = ("*",)
    massive: Annotated[float, above(0)] | None = 6.0
    teacher_inputs: bool = False

    def __post_init__(self) -> None:
        check_fields("features", self)


def features_terms(
    student: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    draw: Draw,
    config: JacobianConfig,
    denoising: bool = True,
    features: FeaturesConfig = FeaturesConfig(),
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
    own = isinstance(process, OwnObjective)
    errors = compared(prediction, taught, target_of(process, draw) if denoising and not own else None)
    if denoising and isinstance(process, OwnObjective):
        errors["denoising"] = process.errors(student, draw.conditions).mean()
    return {**errors, "features": torch.stack(mismatches).mean()}


def feature_mismatch(student: Tensor, teacher: Tensor, massive: float | None = None) -> Tensor:
    """Squared difference of two hidden states (B, ...) over the variance of the teacher's, averaged over the samples.

    Dimensionless, and independent of how a batch is divided, since every sample has its own mean and variance. With
    `massive`, entries with |teacher - mean| > massive x standard deviation are left out of both.
    """
    student, teacher = exact(student).flatten(1), exact(teacher).flatten(1)
    mean, deviation = teacher.mean(1, keepdim=True), teacher.std(1, keepdim=True)
    kept = torch.ones_like(teacher)
    if massive is not None:
        kept = ((teacher - mean).abs() <= massive * deviation).to(teacher.dtype)
    spread = (kept * (teacher - mean).square()).sum(1)
    return ((kept * (student - teacher).square()).sum(1) / spread.clamp_min(FLOOR * teacher.shape[1])).mean()


FEATURES = Objective(
    "features",
    features_terms,
    MATCHED | {"features": 1.0},
    needs_teacher=True,
    denoising_optional=True,
    compares_blocks=True,
    options=("features",),
)
