"""The return value of a criterion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..base.errors import TrainingError
from ..results import BlockReport, LossCurve


@dataclass(frozen=True)
class Ranking:
    """Scores (float64, on the CPU; lowest removed first) of every dim's units (units,) and every block (1,).

    Criteria that rank blocks only leave the dims out.

    Attributes:
        curve: calibration losses, if the criterion computes them.
        report: the block report, if the criterion drops blocks.
        facts: further numbers for the log of a run that scores between stages.
        criterion: the name of the criterion, where it was chosen for the model.
    """

    scores: Mapping[str, Tensor]
    curve: LossCurve | None = None
    report: BlockReport | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    criterion: str | None = None


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """Refuse scores that are not finite: NaN would sort as the largest, and its unit would be kept.

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
