"""The same per class: a pruned model can keep its quality and forget a class, or draw one picture of it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...results import ClassScores
from .manifold import COVERAGE_NEIGHBOURS, manifold_scores


def diversity(features_ND: Tensor, real_MD: Tensor) -> float:
    """Root mean squared distance between two samples over that between two real images: 1 as varied, 0 all the same.

    The mean squared distance of two draws is twice the trace of the covariance. N and M are at least 2.
    """
    drawn, real = (side.double().var(0).sum() for side in (features_ND, real_MD))
    return float((drawn / real).sqrt())


def per_class_scores(
    features_ND: Tensor, labels_N: Tensor, real_MD: Tensor, real_labels_M: Tensor, names: Sequence[str]
) -> tuple[ClassScores, ...]:
    """Precision, recall, density, coverage and diversity of every class that the data has.

    Neighbours are as in `manifold_scores`; None where a side has no more than 5 images of the class.
    """
    rows = []
    for label in real_labels_M.unique().tolist():
        drawn, real = features_ND[labels_N == label], real_MD[real_labels_M == label]
        measured: dict[str, float] = {}
        if min(len(drawn), len(real)) > COVERAGE_NEIGHBOURS:
            measured = {**manifold_scores(drawn, real).means(), "diversity": diversity(drawn, real)}
        rows.append(ClassScores(label, names[label], len(drawn), len(real), **measured))
    return tuple(rows)
