"""First-order matching: the baseline of 2ndMatch, which compares the products J v themselves."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from torch import Tensor, nn

from ...models.jacobian import exact, squared_lengths
from ...process.base import Process
from ...teacher import Draw, Teacher
from .distillation import distillation_terms
from .objective import JACOBIAN_TERM, MATCHED, JacobianConfig, Objective, Terms
from .projections import Asked, jacobian_terms


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


def projection_mismatch(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """First-order matching: ||J v - J_D v||^2, averaged over directions and batch, a scalar."""
    return squared_lengths([exact(s) - exact(t) for s, t in zip(student, teacher, strict=True)]).mean()


FIRST_ORDER = Objective(
    "first-order",
    first_order_terms,
    MATCHED | {JACOBIAN_TERM: 0.1},
    needs_teacher=True,
    terms_without_jacobian=distillation_terms,
    denoising_optional=True,
    teacher_jacobian="products",
)
