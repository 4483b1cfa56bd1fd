"""Quality by class: a pruned model can keep its average quality but lose a class, or draw one image for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ...base.errors import require
from ...models.network import class_count
from ...results.measured import ClassScores, PerClass
from ..measurement import FeatureSets, Measured, OfFeatures, Subject
from .prdc import COVERAGE_NEIGHBOURS, manifold_scores

if TYPE_CHECKING:
    from ..config import EvaluationConfig


def diversity(features_ND: Tensor, real_MD: Tensor) -> float:
    """Root mean squared distance between two samples divided by that between two real images: 1 means equally varied, 0
    all the same.

    The mean squared distance of two draws is twice the trace of the covariance. N and M are at least 2.
    """
    drawn, real = (side.double().var(0).sum() for side in (features_ND, real_MD))
    return float((drawn / real).sqrt())


def per_class_scores(
    features_ND: Tensor, labels_N: Tensor, real_MD: Tensor, real_labels_M: Tensor, names: Sequence[str]
) -> tuple[ClassScores, ...]:
    """Precision, recall, density, coverage and diversity of every class that the data has.

    Neighbours are as in `manifold_scores`; None if a side has at most 5 images of the class.
    """
    found = []
    for label in real_labels_M.unique().tolist():
        drawn, real = features_ND[labels_N == label], real_MD[real_labels_M == label]
        measured: dict[str, float] = {}
        if min(len(drawn), len(real)) > COVERAGE_NEIGHBOURS:
            measured = {**manifold_scores(drawn, real).means(), "diversity": diversity(drawn, real)}
        found.append(ClassScores(label, names[label], len(drawn), len(real), **measured))
    return tuple(found)


def check(subject: Subject) -> None:
    """Refuse too few samples for the neighbours of each class."""
    least, count = (COVERAGE_NEIGHBOURS + 1) * (class_count(subject.dense) or 0), subject.config.num_images
    each = f"per-class takes {COVERAGE_NEIGHBOURS + 1} samples of each class, {least} in all"
    require(count >= least, f"{each}; num_images is {count}, give more")


def measure(sets: FeatureSets, config: EvaluationConfig) -> Measured:
    """The scores of every class of the data."""
    real = sets.real
    assert sets.labels_N is not None
    assert real.labels_M is not None
    classes = per_class_scores(sets.features_ND, sets.labels_N, real.features_MD, real.labels_M, real.class_names)
    return Measured(fields={"per_class": PerClass(COVERAGE_NEIGHBOURS, classes)})


PER_CLASS = OfFeatures(
    name="per-class",
    gives={},
    needs=frozenset({"samples", "features", "labels"}),
    check=check,
    measure=measure,
    least_images=COVERAGE_NEIGHBOURS + 1,
)
