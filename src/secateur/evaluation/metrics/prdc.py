"""Precision, recall, density and coverage: whether samples lie among the real images, and reach all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...results.measured import Metric
from ..estimates import Resampled, mean_estimate
from ..measurement import FeatureSets, Measured, OfFeatures

if TYPE_CHECKING:
    from ..config import EvaluationConfig

RECALL_NEIGHBOURS = 3  # Kynkäänniemi et al. 2019, section 3.1
COVERAGE_NEIGHBOURS = 5  # Naeem et al. 2020, section 5
PAIRS_AT_ONCE = 2**24
ROUNDING = 1e-12  # of distances from inner products, as a share of the largest
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
        """The four metrics with their resamples; `counts_RN` as given to `manifold_scores`."""
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
    """Whether each image lies in the other side's manifold: the union of balls around its points that reach to their
    k-th neighbour.

    Precision and recall: Kynkäänniemi et al. 2019, eq. 1 and 2, borders included. Density and coverage: Naeem et al.
    2020, eq. 3 and 4, borders left out. Each as in its authors' code.

    Needs more images on each side than neighbours. Distances are Euclidean, in float64, N x M of them in chunks. In a
    resample, samples that were not drawn do not count; the balls stay the same, since repeated points would change
    every radius.
    """
    features, real = features_ND.double(), real_MD.double()
    most = max(recall_neighbours, coverage_neighbours)
    real_radii = _radii(real, most)
    narrow, wide = real_radii[:, recall_neighbours - 1], real_radii[:, coverage_neighbours - 1]
    drawn = _radii(features, recall_neighbours)[:, recall_neighbours - 1]
    precision, density = torch.zeros(2, len(features), dtype=torch.float64)
    recall, nearest = torch.zeros(len(real), dtype=torch.bool), torch.full((len(real),), torch.inf, dtype=torch.float64)
    present = torch.zeros(0, len(features)) if counts_RN is None else (counts_RN > 0).float()
    recalled, covered = torch.zeros(2, len(present), len(real))
    for chosen, distances in _distances(features, real):
        reach = drawn[chosen, None]
        for radii in (narrow, wide, reach):
            _settle_ties(distances, radii, features[chosen], real)
        recalled += present[:, chosen] @ (distances <= reach).float()
        covered += present[:, chosen] @ (distances < wide).float()
        precision[chosen] = (distances <= narrow).any(1).double()
        density[chosen] = (distances < wide).sum(1).double() / coverage_neighbours
        recall |= (distances <= reach).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    of_resamples = ((reached > 0).double().mean(1) for reached in (recalled, covered))
    return ManifoldScores(precision, recall.double(), density, (nearest < wide).double(), *of_resamples)


def _radii(points_ND: Tensor, neighbours: int) -> Tensor:
    """Squared distance of each point to its 1st ... k-th nearest other point, (N, k)."""
    radii = torch.empty(len(points_ND), neighbours, dtype=torch.float64)
    for chosen, distances in _distances(points_ND, points_ND):
        own = torch.arange(len(points_ND))[chosen]
        distances[torch.arange(len(own)), own] = -1.0  # the point itself comes first, despite rounding
        nearest = distances.topk(neighbours + 1, largest=False).indices[:, 1:]
        exact = [_squared(points_ND[own], points_ND[column]) for column in nearest.unbind(1)]
        radii[chosen] = torch.stack(exact, dim=1).sort(1).values
    return radii


def _distances(a_ND: Tensor, b_MD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of a chunk of `a_ND` to all of `b_MD`, to rounding, chunk by chunk."""
    size = max(1, PAIRS_AT_ONCE // len(b_MD))
    centre = b_MD.mean(0)  # centred points lose fewer digits when a distance is taken from inner products
    a, b = a_ND - centre, b_MD - centre
    squares = b.square().sum(1)
    for start in range(0, len(a), size):
        chosen = slice(start, start + size)
        part = a[chosen]
        yield chosen, (part.square().sum(1, keepdim=True) + squares - 2 * part @ b.T).clamp(min=0)


def _settle_ties(distances_NM: Tensor, radii: Tensor, a_ND: Tensor, b_MD: Tensor) -> None:
    """Replace distances that equal `radii`, (M,) or (N, 1), up to rounding by exact ones, computed like the radii.

    A repeated image lies exactly on the border of a ball.
    """
    near = (distances_NM - radii).abs() <= ROUNDING * (distances_NM.amax() + radii)
    for pairs in near.nonzero().split(max(1, PAIRS_AT_ONCE // b_MD.shape[1])):
        row, column = pairs.unbind(1)
        distances_NM[row, column] = _squared(a_ND[row], b_MD[column])


def _squared(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """Squared distance of each pair, independent of their order."""
    return (a_ND - b_ND).square().sum(1)


def measure(sets: FeatureSets, config: EvaluationConfig) -> Measured:
    """The four metrics of the samples against the data."""
    scores = manifold_scores(sets.features_ND, sets.real.features_MD, sets.counts_RN)
    return Measured(scores.estimates(sets.counts_RN))


PRDC = OfFeatures(
    name="prdc",
    gives={name: Metric(name, "higher", "data") for name in NAMES},
    measure=measure,
    least_images=COVERAGE_NEIGHBOURS + 1,
)
