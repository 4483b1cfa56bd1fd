"""What the objectives with an input Jacobian share: projections of both networks from one pass of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...models.jacobian import any_attention, project
from ...models.predict import predict
from ...process.base import Process
from ...teacher import Draw, Teacher, as_teacher, at
from ...teacher.draw import directions_of
from .denoising import noisy_and_target
from .objective import JACOBIAN_TERM, JacobianConfig, Terms

T = TypeVar("T")
Asked = Callable[[Teacher], Callable[..., tuple[Tensor, T]]]  # which of a teacher's answers


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
    x_t, target = noisy_and_target(process, draw)
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
        JACOBIAN_TERM: mismatch(projections, answer),
    }
    return terms if denoising else {name: value for name, value in terms.items() if name != "denoising"}


def _shares(count: int, every_n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of every n-th sample, and of the others; made on `device`, since a copy to it would wait."""
    chosen = torch.arange(0, count, every_n, device=device)
    others = torch.arange(count - len(chosen), device=device)
    return chosen, others + others // max(every_n - 1, 1) + 1


def _squared_error(output: Tensor, goal: Tensor) -> Tensor:
    return F.mse_loss(output.to(goal.dtype), goal, reduction="sum")
