"""Fréchet distance between two sets of features, and how it was measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...base.errors import DataError
from ...base.files import check_folder
from ...base.rules import check_fields
from ...results.measured import Fidelity, Metric
from ..estimates import Resampled
from ..measurement import FeatureSets, Measured, OfFeatures, Subject, looks_at_samples_only
from ..networks import metric_name
from ..statistics import Gaussian, read_statistics, statistics, write_statistics

if TYPE_CHECKING:
    from ..config import EvaluationConfig


@dataclass(frozen=True)
class FrechetOptions:
    """Options of the metric frechet.

    Attributes:
        statistics: .npz with mu and sigma (as pytorch-fid writes) to measure the distance to, instead of the data's.
        save_statistics: folder to write mu and sigma of the data and of every model's samples to, as .npz files.
    """

    statistics: str | None = None
    save_statistics: str | None = None

    def __post_init__(self) -> None:
        check_fields("evaluation frechet", self)


def frechet_distance(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor, root_b: Tensor | None = None
) -> float:
    """Squared Fréchet (2-Wasserstein) distance of two Gaussians: Heusel et al. 2017, eq. 6.

    Means are (D,), covariances (D, D), in float64. The trace of the root of A B is that of the symmetric root(A) B
    root(A), whose eigenvalues are real for all ranks. `root_b` is the root of `covariance_b`, if known.
    """
    root_b = _symmetric_root(covariance_b) if root_b is None else root_b
    product = root_b @ covariance_a @ root_b
    eigenvalues = torch.linalg.eigvalsh((product + product.T) / 2)
    trace = covariance_a.trace() + covariance_b.trace() - 2 * eigenvalues.clamp(min=0).sqrt().sum()
    return max(0.0, float((mean_a - mean_b).square().sum() + trace))  # rounding can give -1e-15


def _symmetric_root(matrix: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    return (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T


def frechet_estimate(features_ND: Tensor, reference: Gaussian, counts_RN: Tensor) -> Resampled:
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
    return Resampled(value, torch.tensor([distance(counts) for counts in counts_RN], dtype=torch.float64))


def basis(metric: str, features_ND: Tensor, reference: Gaussian) -> Fidelity:
    """How the Fréchet distance of features (N, D) to `reference` was measured."""
    count, dims = features_ND.shape
    known = count if reference.count is None else min(count, reference.count)
    return Fidelity(metric, count, reference.count, dims, full_rank=known > dims)


def check(subject: Subject) -> None:
    """Refuse statistics that cannot be read, belong to other features, or cannot be written."""
    if subject.config.frechet.save_statistics is not None:
        check_folder(subject.config.frechet.save_statistics)
    if subject.config.frechet.statistics is not None and subject.network is not None:
        read_statistics(subject.config.frechet.statistics, subject.network.dim)


def measure(sets: FeatureSets, config: EvaluationConfig) -> Measured:
    """The distance of the samples from the data, or from the statistics in the file that `config` names."""
    options = config.frechet
    file = None if options.statistics is None else read_statistics(options.statistics, sets.network.dim)
    if options.save_statistics is not None:
        folder = Path(options.save_statistics)
        write_statistics(folder / "real.npz", sets.real.statistics)
        write_statistics(folder / f"{sets.name}.npz", statistics(sets.features_ND))
    reference = file or sets.real.statistics
    found = frechet_estimate(sets.features_ND, reference, sets.counts_RN)
    return Measured({"fd": found}, {"fidelity": basis(metric_name(sets.network), sets.features_ND, reference)})


def needs_real(config: EvaluationConfig) -> bool:
    """Whether the data's own statistics are needed."""
    return config.frechet.statistics is None or config.frechet.save_statistics is not None


def measure_to_reference(sets: FeatureSets, config: EvaluationConfig) -> Measured:
    """The distance of the samples from the reference's; none for the reference itself."""
    if sets.dense is None:
        return Measured()
    return Measured({"rfd": frechet_estimate(sets.features_ND, sets.dense, sets.counts_RN)})


FRECHET = OfFeatures(
    name="frechet",
    gives={"fd": Metric("FD", "lower", "data")},
    check=check,
    measure=measure,
    needs_real=needs_real,
)
RFID = OfFeatures(
    name="rfid",
    gives={"rfd": Metric("rFD", "lower", "reference")},
    needs=frozenset({"samples", "features", "reference"}),
    measure=measure_to_reference,
    needs_real=looks_at_samples_only,
)
