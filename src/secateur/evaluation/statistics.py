"""Mean and covariance of features, computed from a stream or read from files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from ..base.files import atomic_file
from ..base.npz import read_arrays


class Gaussian(Protocol):
    """Mean (D,) and covariance (D, D) in float64, as compared by a Fréchet distance."""

    @property
    def mean(self) -> Tensor: ...

    @property
    def covariance(self) -> Tensor: ...

    @property
    def count(self) -> int | None:
        """Number of images; None if a file does not say."""
        ...


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


@dataclass(frozen=True)
class SavedStatistics:
    """Statistics from a file."""

    mean: Tensor
    covariance: Tensor
    count: int | None = None


def write_statistics(path: str | Path, found: Gaussian) -> Path:
    """Write an `.npz` with `mu` (D,) and `sigma` (D, D) as pytorch-fid does, and `count` images, 0 if unknown."""
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        np.savez(stream, mu=found.mean.numpy(), sigma=found.covariance.numpy(), count=np.asarray(found.count or 0))
    return Path(path)


def read_statistics(path: str | Path, dim: int) -> SavedStatistics:
    """The statistics in an `.npz` with `mu` and `sigma`, such as pytorch-fid and ADM publish.

    Raises:
        DataError: it cannot be read, or its features do not have `dim` dimensions.
    """
    path = Path(path)
    arrays = read_arrays(path, ("mu", "sigma", "count"))
    if not {"mu", "sigma"} <= arrays.keys():
        raise DataError(f"{path} holds no `mu` and `sigma`; give statistics in the layout of pytorch-fid")
    if wrong := [name for name, array in arrays.items() if array.dtype.kind not in "iuf"]:
        raise DataError(f"{path} holds {' and '.join(wrong)} that are no numbers")
    mean, covariance, count = arrays["mu"], arrays["sigma"], arrays.get("count", np.asarray(0))
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise DataError(
            f"{path} holds mu {mean.shape} and sigma {covariance.shape}, the feature network gives {dim} dimensions; "
            "choose the network that the statistics are of by --evaluation.features"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise DataError(f"{path} holds numbers that are not finite")
    if count.shape != () or not (0 <= count < 2**63 and count == int(count)):
        raise DataError(f"{path} holds a count that is no number of images: {count.dtype} of shape {count.shape}")
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-4 * covariance.diagonal().max(initial=0)):
        raise DataError(f"{path} holds a sigma that is no covariance: it is not symmetric")
    if (covariance.diagonal() < 0).any():
        raise DataError(f"{path} holds a sigma that is no covariance: some variances are below 0")
    return SavedStatistics(torch.from_numpy(mean), torch.from_numpy(covariance), int(count) or None)
