"""The Jacobian terms of recovery: options, and how student and teacher are compared.

2ndMatch (Zheng & Shlizerman, CVPR 2026, arXiv 2506.05398) matches the growth ||J v||^2 of random perturbations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..base.rules import Count, check_fields
from ..models.jacobian import Projection, exact, squared_lengths

FLOOR = 1e-3  # smallest growth that `relative` divides by


@dataclass(frozen=True)
class JacobianConfig:
    """Options of the objectives with an input Jacobian: 2ndmatch and first-order.

    Attributes:
        projection: vjp compares J'v, as the released code does; jvp compares Jv, as the paper writes, at a higher
            price. The two agree where J is symmetric, as for an exact score.
        directions: random directions per sample; their squared differences use the mean growth over them.
        every_n: use the Jacobian term at every n-th step only, with n times its weight.
        every_n_samples: use it for every n-th sample of the batch only; n must divide the parts of a batch that is
            divided between processes or micro-batches.
        relative: divide the difference in growth by the teacher's, so that timesteps with little noise do not dominate
            (2ndmatch only: first-order compares no growths).
        auto_weight: over the first 10 steps that have the term, and again after every cut, lower its weight until its
            gradient norm is at most that of the other terms: for data other than the paper's.
    """

    projection: Projection = "vjp"
    directions: Count = 1
    every_n: Count = 1
    every_n_samples: Count = 1
    relative: bool = False
    auto_weight: bool = False

    def __post_init__(self) -> None:
        check_fields("jacobian", self)


def growth_mismatch(student: Sequence[Tensor], taught: Tensor, relative: bool = False) -> Tensor:
    """L_Jac: mean over the batch of (||J v||^2 - ||J_D v||^2)^2, a scalar (2ndMatch, second-order matching loss).

    `student` are its projections, `taught` is the teacher's growth, (B,).
    """
    difference = squared_lengths(student) - taught
    return (difference / (taught + FLOOR) if relative else difference).square().mean()


def projection_mismatch(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """First-order matching: ||J v - J_D v||^2, averaged over directions and batch, a scalar."""
    return squared_lengths([exact(s) - exact(t) for s, t in zip(student, teacher, strict=True)]).mean()
