"""Hidden-state distillation: the outputs of named blocks against those of the same blocks of the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..base.rules import above, check_fields
from ..models.jacobian import exact

FLOOR = 1e-8  # of the variance that is divided by: a state that is all but constant


@dataclass(frozen=True)
class FeaturesConfig:
    """Options of the objective features.

    Attributes:
        blocks: glob patterns of the dense model's blocks that are matched, as `secateur inspect` names them; those that
            left the pruned model are passed over.
        massive: a teacher's activation further than this many standard deviations from the mean of its hidden state is
            left out, since a few of them would outweigh all others; None leaves out none.
        teacher_inputs: each block takes the teacher's own hidden state, so that it learns its own task and not to mend
            what those before it do; its output then takes a pass of its own.
    """

    blocks: tuple[str, ...] = ("*",)
    massive: Annotated[float, above(0)] | None = 6.0
    teacher_inputs: bool = False

    def __post_init__(self) -> None:
        check_fields("features", self)


def feature_mismatch(student: Tensor, teacher: Tensor, massive: float | None = None) -> Tensor:
    """Squared difference of two hidden states (B, ...) over the variance of the teacher's, averaged over the samples.

    A pure number, and the same however a batch is shared out, since every sample has its own mean and variance. Where
    `massive` is given, entries with |teacher - mean| > massive x standard deviation count in neither.
    """
    student, teacher = exact(student).flatten(1), exact(teacher).flatten(1)
    mean, deviation = teacher.mean(1, keepdim=True), teacher.std(1, keepdim=True)
    kept = torch.ones_like(teacher)
    if massive is not None:
        kept = ((teacher - mean).abs() <= massive * deviation).to(teacher.dtype)
    spread = (kept * (teacher - mean).square()).sum(1)
    return ((kept * (student - teacher).square()).sum(1) / spread.clamp_min(FLOOR * teacher.shape[1])).mean()
