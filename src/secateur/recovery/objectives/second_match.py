"""2ndMatch (Zheng & Shlizerman, CVPR 2026, arXiv 2506.05398): match the growth ||J v||^2 of random perturbations.

The paper sums errors over pixels and compares absolute growths: its terms, with weights 1, 1 and 0.1, equal those here
up to one common factor, the number of pixel values D. So its Jacobian term falls as 1 / D relative to the others, here
as there. The relative growth is dimensionless.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from torch import Tensor, nn

from ...models.jacobian import squared_lengths
from ...process.base import Process
from ...teacher import Draw, Teacher
from .distillation import distillation_terms
from .objective import JACOBIAN_TERM, MATCHED, JacobianConfig, Objective, Terms
from .projections import Asked, jacobian_terms

FLOOR = 1e-3  # smallest growth that `relative` divides by


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


def growth_mismatch(student: Sequence[Tensor], taught: Tensor, relative: bool = False) -> Tensor:
    """L_Jac: mean over the batch of (||J v||^2 - ||J_D v||^2)^2, a scalar (2ndMatch, second-order matching loss).

    `student` are its projections, `taught` is the teacher's growth, (B,).
    """
    difference = squared_lengths(student) - taught
    return (difference / (taught + FLOOR) if relative else difference).square().mean()


SECOND_MATCH = Objective(
    "2ndmatch",
    second_match_terms,
    MATCHED | {JACOBIAN_TERM: 0.1},
    needs_teacher=True,
    terms_without_jacobian=distillation_terms,
    denoising_optional=True,
    teacher_jacobian="growth",
)
