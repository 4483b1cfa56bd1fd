"""Precision, recall, density and coverage: do samples lie among the real images, and do they reach all of them?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...results.evaluation import Metric
from ..estimates import Resampled, mean_estimate
from ..measurement import FeatureSets, Measured, OfFeatures

if TYPE_CHECKING:
    from ..config import EvaluationConfig

RECALL_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3.1
COVERAGE_NEIGHBOURS = 5  # Naeem et al. 2020, section 5
PAIRS_AT_ONCE = 2**24
NAMES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class ManifoldScores:
    """Per-image values whose means are the four metrics, float64; N samples, M real images."""

    precision_N: Tensor
    recall_M: Tensor
    density_N: Tensor
    coverage_M: Tensor
    recall_R: Tensor  # of resamples of the samples
    coverage_R: Tensor

    def means(self) -> dict[str, float]:
        """The four metrics by name."""
        values = (self.precision_N, self.recall_M, self.density_N, self.coverage_M)
        return {name: float(found.mean()) for name, found in zip(NAMES, values, strict=True)}

    def estimates(self, counts_RN: Tensor) -> dict[str, Resampled]:
        """The four metrics with their resamples, which `manifold_scores` was given too."""
        precision, density = (mean_estimate(found, counts_RN) for found in (self.precision_N, self.density_N))
        recall = Resampled(float(self.recall_M.mean()), self.recall_R)
        coverage = Resampled(float(self.coverage_M.mean()), self.coverage_R)
        return dict(zip(NAMES, (precision, recall, density, coverage), strict=True))


def manifold_scores(
    features_ND: Tensor,
    real_MD: Tensor,
    counts_RN: Tensor | None = None,
    *,
    recall_neighbours: int = RECALL_NEIGHBOURS,
    coverage_neighbours: int = COVERAGE_NEIGHBOURS,
) -> ManifoldScores:
    """Whether each image lies in the other side's manifold, the union of balls that reach to the k-th neighbour.

    Precision and recall: Kynkäänniemi et al. 2019, eq. 1 and 2. Density and coverage: Naeem et al. 2020, eq. 3 and 4.
    Needs more images on each side than neighbours. Distances are Euclidean, in float64, N x M of them in chunks. In a
    resample, by its counts, samples that were not drawn reach nothing; the balls stay as they are, since repeated
    points would change every radius.
    """
    # Centred features lose fewer digits when a distance is taken from inner products.
    centre = real_MD.double().mean(0)
    features, real = features_ND.double() - centre, real_MD.double() - centre
    most = max(recall_neighbours, coverage_neighbours)
    real_radii = _radii(real, most)
    narrow, wide = real_radii[:, recall_neighbours - 1], real_radii[:, coverage_neighbours - 1]
    drawn = _radii(features, recall_neighbours)[:, recall_neighbours - 1]
    precision, density = torch.zeros(2, len(features), dtype=torch.float64)
    recall, nearest = torch.zeros(len(real), dtype=torch.bool), torch.full((len(real),), torch.inf, dtype=torch.float64)
    present = torch.zeros(0, len(features)) if counts_RN is None else (counts_RN > 0).float()
    recalled, covered = torch.zeros(2, len(present), len(real))
    for chosen, distances in _distances(features, real):
        recalled += present[:, chosen] @ (distances <= drawn[chosen, None]).float()
        covered += present[:, chosen] @ (distances <= wide).float()
        precision[chosen] = (distances <= narrow).any(1).double()
        density[chosen] = (distances <= wide).sum(1).double() / coverage_neighbours
        recall |= (distances <= drawn[chosen, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    of_resamples = ((reached > 0).double().mean(1) for reached in (recalled, covered))
    return ManifoldScores(precision, recall.double(), density, (nearest <= wide).double(), *of_resamples)


def _radii(points_ND: Tensor, neighbours: int) -> Tensor:
    """Squared distance of each point to its 1st ... k-th nearest other point, (N, k)."""
    radii = torch.empty(len(points_ND), neighbours, dtype=torch.float64)
    for chosen, distances in _distances(points_ND, points_ND):
        own = torch.arange(len(points_ND))[chosen]
        distances[torch.arange(len(own)), own] = -1.0  # itself comes first, whatever rounding says
        radii[chosen] = distances.topk(neighbours + 1, largest=False).values[:, 1:]
    return radii


def _distances(a_ND: Tensor, b_MD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of a chunk of `a_ND` to all of `b_MD`, chunk by chunk."""
    size = max(1, PAIRS_AT_ONCE // len(b_MD))
    squares = b_MD.square().sum(1)
    for start in range(0, len(a_ND), size):
        chosen = slice(start, start + size)
        part = a_ND[chosen]
        yield chosen, (part.square().sum(1, keepdim=True) + squares - 2 * part @ b_MD.T).clamp(min=0)


def measure(sets: FeatureSets, config: EvaluationConfig) -> Measured:
    """The four metrics of the samples beside the data."""
    scores = manifold_scores(sets.features_ND, sets.real.features_MD, sets.counts_RN)
    return Measured(scores.estimates(sets.counts_RN))


PRDC = OfFeatures(
    name="prdc",
    gives={name: Metric(name, "higher", "data") for name in NAMES},
    measure=measure,
    least_images=COVERAGE_NEIGHBOURS + 1,
)
