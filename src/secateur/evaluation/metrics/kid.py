"""Kernel distance between two sets of features (KID)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...results.measured import Metric
from ..estimates import Resampled
from ..measurement import FeatureSets, Measured, OfFeatures

if TYPE_CHECKING:
    from ..config import EvaluationConfig

CHUNK = 1024


def polynomial_kernel(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    """(x.y / D + 1)^3 of every pair, (N, M): Bińkowski et al. 2018, section 4."""
    return (a_ND @ b_MD.T / a_ND.shape[1] + 1) ** 3


def kernel_distance(features_ND: Tensor, real_MD: Tensor, counts_RN: Tensor) -> Resampled:
    """KID: the unbiased squared MMD under the polynomial kernel (Bińkowski et al. 2018, eq. 4), in float64.

    It is taken over all pairs of images, N and M at least 2. Implementations that average random subsets estimate the
    same quantity with more noise. Resamples leave out pairs of an image with itself.
    """
    features, real = features_ND.double(), real_MD.double()
    weights = torch.cat([torch.ones(1, len(features), dtype=torch.float64), counts_RN])
    within = torch.zeros(len(weights), dtype=torch.float64)
    for start in range(0, len(features), CHUNK):
        chosen = slice(start, start + CHUNK)
        kernel = polynomial_kernel(features, features[chosen])
        within += ((weights @ kernel) * weights[:, chosen]).sum(1)
    itself = (features.square().sum(1) / features.shape[1] + 1) ** 3
    within -= weights.square() @ itself
    pairs = weights.sum(1).square() - weights.square().sum(1)
    across = weights @ _mean_kernel(features, real) / len(features)
    values = within / pairs + _mean_within(real) - 2 * across
    return Resampled(float(values[0]), values[1:])


def _mean_kernel(features_ND: Tensor, real_MD: Tensor) -> Tensor:
    """Mean kernel of each feature with all the real ones, (N,)."""
    return torch.cat([polynomial_kernel(chunk, real_MD).mean(1) for chunk in features_ND.split(CHUNK)])


def _mean_within(real_MD: Tensor) -> Tensor:
    """Mean kernel over all pairs of different real features."""
    count = len(real_MD)
    itself = ((real_MD.square().sum(1) / real_MD.shape[1] + 1) ** 3).sum()
    return (_mean_kernel(real_MD, real_MD).sum() * count - itself) / (count * (count - 1))


def measure(sets: FeatureSets, config: EvaluationConfig) -> Measured:
    """KID of the samples to the data."""
    return Measured({"kid": kernel_distance(sets.features_ND, sets.real.features_MD, sets.counts_RN)})


KID = OfFeatures(name="kid", gives={"kid": Metric("KID", "lower", "data")}, measure=measure)
