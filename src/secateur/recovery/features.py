"""Hidden-state distillation: the outputs of named blocks against those of the same blocks of the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from ..base.rules import above, check_fields

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
    """Mean squared difference of two hidden states over the variance of the teacher's, a pure number.

    Where `massive` is given, entries with |teacher - mean| > massive x standard deviation count in neither.
    """
    student, teacher = student.float(), teacher.float()
    mean, deviation = teacher.mean(), teacher.std()
    kept = torch.ones_like(teacher) if massive is None else ((teacher - mean).abs() <= massive * deviation).float()
    spread = (kept * (teacher - mean).square()).sum()
    return (kept * (student - teacher).square()).sum() / spread.clamp_min(FLOOR * teacher.numel())
