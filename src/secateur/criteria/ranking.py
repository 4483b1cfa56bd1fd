"""What a criterion returns, and how importances of weights become scores of units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from ..base.errors import TrainingError
from ..structure import Structure
from .blocks.report import BlockReport

ElementReduction = Literal["abs", "square"]
GroupReduction = Literal["sum", "mean"]


@dataclass(frozen=True)
class LossCurve:
    """Calibration losses from the clean end on, and how many of the first timesteps the score used."""

    timesteps: tuple[float, ...]
    losses: tuple[float, ...]
    used: int


@dataclass(frozen=True)
class Ranking:
    """Scores (float64, on the CPU; low leaves first) of every dim's units (units,) and every block (1,).

    Criteria that rank blocks only leave the dims out.

    Attributes:
        curve: of a criterion that computes calibration losses.
        report: of a criterion that drops blocks.
        facts: more numbers for the log of a run that scores between stages.
    """

    scores: Mapping[str, Tensor]
    curve: LossCurve | None = None
    report: BlockReport | None = None
    facts: Mapping[str, float] = field(default_factory=dict)


def reduce_elements(values: Tensor, reduction: ElementReduction) -> Tensor:
    """|x| or x^2, element by element."""
    return values.abs() if reduction == "abs" else values.square()


def unit_scores(
    structure: Structure, importance: Mapping[str, Tensor], group_reduction: GroupReduction = "sum"
) -> dict[str, Tensor]:
    """Sum the importance of every parameter entry over the slices of each unit, and over each block.

    Args:
        structure: the structure of the model.
        importance: for each parameter by name, a tensor of its shape; non-negative for "mean", of any sign for "sum".
        group_reduction: "sum" over all entries of a unit; or "mean" over the entries of each slice, then over the
            slices, divided by the dim's own mean, so that every dim's scores average 1.
    """
    along: dict[tuple[str, int], Tensor] = {}
    scores: dict[str, Tensor] = {}
    for dim in structure.dims.values():
        parts = []
        for piece in dim.slices:
            key = (piece.parameter, piece.axis)
            if key not in along:
                values = importance[piece.parameter].movedim(piece.axis, 0)
                moved = values.reshape(len(values), -1).cpu().double()
                along[key] = moved.sum(1) if group_reduction == "sum" else moved.mean(1)
            entries = along[key][piece.offset : piece.offset + dim.size * dim.width]
            per_unit = entries.reshape(dim.size, dim.width)
            parts.append(per_unit.sum(1) if group_reduction == "sum" else per_unit.mean(1))
        stacked = torch.stack(parts)
        if group_reduction == "sum":
            scores[dim.name] = stacked.sum(0)
        else:
            mean = stacked.mean(0)
            scores[dim.name] = mean / mean.mean().clamp_min(torch.finfo(mean.dtype).tiny)
    for name in structure.blocks:
        owned = [values.cpu().double().sum() for key, values in importance.items() if key.startswith(name + ".")]
        scores[name] = torch.stack(owned).sum().reshape(1)
    return scores


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """Refuse scores that have no order: NaN would sort as the largest, and its unit would stay.

    Raises:
        TrainingError: a score is not finite.
    """
    wrong = [name for name, values in scores.items() if not values.isfinite().all()]
    if wrong:
        raise TrainingError(
            f"scores of {len(wrong)} of {len(scores)} widths and blocks are not finite, of {wrong[0]} first: check the "
            "model's weights, or load them in float32"
        )


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by each of its names."""
    return dict(model.named_parameters(remove_duplicate=False))
