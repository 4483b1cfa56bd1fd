"""The scores of every class side by side, and the classes that pruning lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..results import ClassScores, Evaluation

SCORES = ("coverage", "diversity")  # these fall when a class disappears or always gives the same image
COLLAPSED = 0.25  # a class has collapsed when it loses this share of the reference's score
MOST_CLASSES = 40


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class for every model, the reference first; `final` is the name of the final result."""

    name: str
    models: Mapping[str, ClassScores]
    final: str

    def value(self, model: str, score: str) -> float | None:
        """A score of a model; None where it was not measured."""
        found = self.models.get(model)
        return None if found is None else getattr(found, score)

    def change(self, model: str, score: str) -> float | None:
        """Change of `score` as a share of the reference's; 0 for the reference itself."""
        before, after = self.value(next(iter(self.models)), score), self.value(model, score)
        return None if before is None or after is None or not before else after / before - 1

    def collapsed(self, model: str, score: str) -> bool:
        """Whether `model` lost a quarter of the reference's score or more."""
        change = self.change(model, score)
        return change is not None and change <= -COLLAPSED


def class_scores(evaluation: Evaluation | None) -> list[ClassScore]:
    """Every class of the data, in order; none where nothing was measured by class."""
    if evaluation is None:
        return []
    found: dict[int, dict[str, ClassScores]] = {}
    names = {}
    for model, result in evaluation.models.items():
        for row in result.per_class.classes if result.per_class is not None else ():
            names[row.label] = row.name
            found.setdefault(row.label, {})[model] = row
    return [ClassScore(names[label], rows, evaluation.final_name) for label, rows in found.items()]


def worst_first(scores: Sequence[ClassScore], most: int = MOST_CLASSES) -> list[ClassScore]:
    """All classes in order if there are at most `most`; otherwise those in which the final model lost most."""
    return list(scores) if len(scores) <= most else sorted(scores, key=_largest_loss)[:most]


def collapsed_classes(scores: Sequence[ClassScore]) -> list[tuple[ClassScore, str]]:
    """Classes that collapsed in the final model, worst first, each with the score that fell most."""
    lost = [found for found in scores if any(found.collapsed(found.final, score) for score in SCORES)]
    worst = sorted(lost, key=_largest_loss)
    return [(found, min(SCORES, key=lambda score: _change(found, score))) for found in worst]


def _change(found: ClassScore, score: str) -> float:
    return found.change(found.final, score) or 0.0


def _largest_loss(found: ClassScore) -> float:
    return min(_change(found, score) for score in SCORES)
