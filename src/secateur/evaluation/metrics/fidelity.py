"""Fréchet distance between two sets of features, and how far it can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from ...base.errors import DataError
from ...results import Fidelity
from ..estimates import Estimate
from ..statistics import Gaussian


def frechet_distance(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor, root_b: Tensor | None = None
) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: Heusel et al. 2017, eq. 6.

    Means are (D,), covariances (D, D), in float64. The trace of the root of A B is that of the symmetric root(A) B
    root(A), whose eigenvalues are real whatever the ranks. `root_b` is that of `covariance_b`, where it is at hand.
    """
    root_b = _symmetric_root(covariance_b) if root_b is None else root_b
    product = root_b @ covariance_a @ root_b
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    trace = covariance_a.trace() + covariance_b.trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + trace))  # rounding can leave -1e-15


def _symmetric_root(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T


def frechet_estimate(features_ND: Tensor, reference: Gaussian, counts_RN: Tensor) -> Estimate:
    """Fréchet distance of features (N, D) to `reference`, and that of each resample of the N images.

    Raises:
        DataError: fewer than two images on a side.
    """
    if len(features_ND) < 2:
        raise DataError(f"a Fréchet distance needs at least 2 images on each side, there is {len(features_ND)}")
    mean_b, covariance_b = reference.mean, reference.covariance
    root_b = _symmetric_root(covariance_b)
    features = features_ND.double()

    def distance(counts_N: Tensor) -> float:
        mean = counts_N @ features / len(features)
        deviations = features - mean
        covariance = (deviations * counts_N.unsqueeze(1)).T @ deviations / (len(features) - 1)
        return frechet_distance(mean, covariance, mean_b, covariance_b, root_b)

    value = distance(torch.ones(len(features), dtype=torch.float64))
    return Estimate(value, torch.tensor([distance(counts) for counts in counts_RN], dtype=torch.float64))


def fidelity(metric: str, features_ND: Tensor, reference: Gaussian) -> Fidelity:
    """What the distance of generated images' features (N, D) to the `reference` of real ones rests on."""
    count, dims = features_ND.shape
    known = count if reference.count is None else min(count, reference.count)
    return Fidelity(metric, count, reference.count, dims, full_rank=known > dims)
