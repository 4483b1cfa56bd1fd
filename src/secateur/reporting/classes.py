"""The scores of every class side by side, and the classes that pruning lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..results.evaluation import Evaluation

SCORES = ("coverage", "diversity")  # what a class that is gone, or always the same picture, loses
COLLAPSED = 0.25  # share of the reference's score whose loss is called a collapse
MOST_CLASSES = 40


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class for every model, the reference first; absent or None where nothing was measured."""

    name: str
    models: Mapping[str, Mapping[str, Any]]

    def change(self, model: str, score: str) -> float | None:
        """Of `score`, as a share of the reference's; of the reference itself 0."""
        before, after = (found.get(score) for found in (next(iter(self.models.values())), self.models[model]))
        return None if before is None or after is None or not before else after / before - 1

    def collapsed(self, model: str, score: str) -> bool:
        """Whether `model` lost a quarter of the reference's score or more."""
        change = self.change(model, score)
        return change is not None and change <= -COLLAPSED


def class_scores(evaluation: Evaluation) -> list[ClassScore]:
    """Every class of the data, in order; none where nothing was measured by class."""
    models = [model for model in evaluation.models if model.classes]
    found: dict[Any, dict[str, Mapping[str, Any]]] = {}
    names = {}
    for model in models:
        for row in model.classes:
            names[row["label"]] = str(row.get("name", row["label"]))
            found.setdefault(row["label"], {model.name: {} for model in models})[model.name] = row
    return [ClassScore(names[label], rows) for label, rows in found.items()]


def worst_first(scores: Sequence[ClassScore], most: int = MOST_CLASSES) -> list[ClassScore]:
    """All of few classes, as they are; of many, those of which the final model lost most."""
    return list(scores) if len(scores) <= most else sorted(scores, key=_largest_loss)[:most]


def collapsed_classes(scores: Sequence[ClassScore]) -> list[tuple[ClassScore, str]]:
    """Classes that collapsed in the final model, each with the score that it lost most of, the worst first."""
    lost = [(_largest_loss(found), found) for found in scores if any(found.collapsed(_final(found), s) for s in SCORES)]
    worst = sorted(lost, key=lambda pair: pair[0])
    return [(found, min(SCORES, key=lambda score: _change(found, score))) for _, found in worst]


def _final(found: ClassScore) -> str:
    return list(found.models)[-1]


def _change(found: ClassScore, score: str) -> float:
    change = found.change(_final(found), score)
    return 0.0 if change is None else change


def _largest_loss(found: ClassScore) -> float:
    return min(_change(found, score) for score in SCORES)
