"""Fréchet distance between two sets of features, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: Heusel et al. 2017, eq. 6.

    Means are (D,), covariances (D, D), in float64. The trace of the root of A B is that of the symmetric root(A) B
    root(A), whose eigenvalues are real whatever the ranks.
    """
    root_a = _symmetric_root(covariance_a)
    product = root_a @ covariance_b @ root_a
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    trace = covariance_a.trace() + covariance_b.trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + trace))  # rounding can leave -1e-15


def _symmetric_root(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T


class FeatureStatistics:
    """Mean and covariance of a stream of features, in float64 on the CPU."""

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)  # sum of outer products of deviations

    def update(self, features_ND: Tensor) -> None:
        """Add features (N, D), N at least 1, by the pairwise update of Chan, Golub & LeVeque 1983, eq. 2.1."""
        features = features_ND.detach().cpu().double()
        mean = features.mean(0)
        deviations = features - mean
        count, total = len(features), self.count + len(features)
        shift = mean - self.mean
        scatter = deviations.T @ deviations
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance (D, D).

        Raises:
            DataError: fewer than two images.
        """
        if self.count < 2:
            raise DataError(f"a Fréchet distance needs at least 2 images on each side, there is {self.count}")
        return self._scatter / (self.count - 1)


def statistics(features_ND: Tensor) -> FeatureStatistics:
    """Statistics of features (N, D) held in memory."""
    result = FeatureStatistics(features_ND.shape[1])
    result.update(features_ND)
    return result


def frechet_std(features_a: Tensor, reference: FeatureStatistics, resamples: int = 10, seed: int = 0) -> float:
    """Standard deviation of the Fréchet distance over bootstrap resamples of the images of `features_a` (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(resamples):
        chosen = torch.randint(len(features_a), (len(features_a),), generator=generator)
        drawn = statistics(features_a[chosen])
        distance = frechet_distance(drawn.mean, drawn.covariance, reference.mean, reference.covariance)
        values.append(distance)
    return float(torch.tensor(values, dtype=torch.float64).std())


@dataclass(frozen=True)
class Fidelity:
    """A Fréchet distance with what it rests on."""

    metric: str  # FID, or FD[<feature network>]
    value: float
    std: float  # bootstrap over the generated images
    samples: int
    reference_samples: int
    dims: int
    full_rank: bool  # False: fewer images than features, so the value is strongly biased


def fidelity(metric: str, features_ND: Tensor, reference: FeatureStatistics) -> Fidelity:
    """Distance of generated images' features (N, D) to the `reference` of real ones.

    Raises:
        DataError: fewer than two images on a side.
    """
    drawn = statistics(features_ND)
    count, dims = features_ND.shape
    return Fidelity(
        metric,
        frechet_distance(drawn.mean, drawn.covariance, reference.mean, reference.covariance),
        frechet_std(features_ND, reference),
        count,
        reference.count,
        dims,
        min(count, reference.count) > dims,
    )
