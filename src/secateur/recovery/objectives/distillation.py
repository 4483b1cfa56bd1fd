"""Output distillation: the error against the dense model's output on the same noisy input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.predict import predict
from ...process.base import Process
from ...process.own import OwnObjective
from ...teacher import Draw, Teacher, as_teacher, at
from .denoising import target_of
from .objective import MATCHED, JacobianConfig, Objective, Terms

Error = Callable[[Tensor, Tensor], Tensor]  # of two batches: a scalar


def distillation_terms(
    student: nn.Module,
    teacher: nn.Module | Teacher | None,
    process: Process,
    draw: Draw,
    config: JacobianConfig,
    denoising: bool = True,
    error: Error = F.mse_loss,
) -> Terms:
    """The `error` against the dense teacher's output on the same noisy input, and `denoising_terms`."""
    assert teacher is not None
    if isinstance(process, OwnObjective):
        network = as_teacher(teacher).network
        assert network is not None
        with torch.no_grad():
            taught = process.predict(network, draw.conditions)
        terms = {"denoising": process.errors(student, draw.conditions).mean()} if denoising else {}
        return {**terms, "distillation": error(process.predict(student, draw.conditions), taught)}
    x_t = process.add_noise(draw.sample, draw.noise, draw.timesteps)
    prediction = predict(student, *at(x_t, draw))
    taught = as_teacher(teacher).output(x_t, draw)
    return compared(prediction, taught, target_of(process, draw) if denoising else None, error)


def compared(prediction: Tensor, taught: Tensor, target: Tensor | None, error: Error = F.mse_loss) -> Terms:
    """The mean squared error against the process's target, if that has a weight, and the `error` against the teacher's
    output."""
    like = taught if target is None else target
    prediction = prediction.to(like.dtype)
    terms = {} if target is None else {"denoising": F.mse_loss(prediction, target)}
    return {**terms, "distillation": error(prediction, taught.to(like.dtype))}


DISTILLATION = Objective(
    "distillation", distillation_terms, MATCHED, needs_teacher=True, denoising_optional=True, compiles=True
)
