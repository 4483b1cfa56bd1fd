"""Hidden-state distillation: outputs of blocks are compared with those of the same blocks of the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..base.rules import above, check_fields
from ..models.jacobian import exact

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
