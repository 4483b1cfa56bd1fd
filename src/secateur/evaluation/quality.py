"""From rows of single images to the metrics of every model, for the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..base.console import progress
from ..base.rows import Rows
from ..data import ImageDataset
from ..results import PerClass
from .config import EvaluationConfig
from .estimates import Estimate, mean_estimate, resample_counts
from .measured import Measured
from .metrics.fidelity import fidelity, frechet_estimate
from .metrics.inception_score import inception_score
from .metrics.kernel import kernel_distance
from .metrics.manifold import COVERAGE_NEIGHBOURS, manifold_scores
from .metrics.per_class import per_class_scores
from .networks import FeatureNetwork, metric_name
from .statistics import FeatureStatistics, Gaussian, read_statistics, statistics, write_statistics

PAIRS = ("ssim", "psnr", "mse", "ms_ssim", "lpips")


def all_finite(rows: Rows) -> bool:
    """Whether no sample diverged."""
    return all(bool(chunk["finite"].all()) for chunk in rows.chunks())


def measure_pairs(rows: Rows, config: EvaluationConfig) -> Measured:
    """Means over the images that were compared with the reference's one by one."""
    found = rows.columns(PAIRS)
    if not found:
        return Measured()
    counts = resample_counts(len(next(iter(found.values()))), config.bootstrap, config.seed)
    return Measured(estimates={name: mean_estimate(values, counts) for name, values in found.items()})


def measure_reconstructions(rows: Rows, config: EvaluationConfig) -> Measured:
    """Means over the images that a decoder's reconstructions were compared with."""
    found = rows.columns([f"image_{name}" for name in PAIRS])
    counts = resample_counts(rows.count, config.bootstrap, config.seed)
    return Measured(estimates={name: mean_estimate(values, counts) for name, values in found.items()})


def measure_text(rows: Rows, config: EvaluationConfig) -> Measured:
    """The mean CLIP score of the samples with their captions, if it was taken."""
    found = rows.columns(("clip_score",))
    counts = resample_counts(rows.count, config.bootstrap, config.seed)
    return Measured(estimates={name: mean_estimate(values, counts) for name, values in found.items()})


@dataclass(frozen=True)
class RealImages:
    """What samples are compared with: one row per real image, or no more than the statistics of a file."""

    statistics: Gaussian | None = None  # None: the Fréchet distance is not asked for
    features_MD: Tensor | None = None
    labels_M: Tensor | None = None
    class_names: tuple[str, ...] = ()


def read_real(
    rows: Rows | None, dataset: ImageDataset, network: FeatureNetwork, config: EvaluationConfig
) -> RealImages:
    """The real images of `rows`, with the statistics that the Fréchet distance is to.

    Raises:
        DataError: the file of statistics cannot be read, or is of other features.
    """
    found = {} if rows is None else rows.columns(("features", "labels"))
    own: Gaussian | None = None
    if rows is not None:
        stream = FeatureStatistics(network.dim)
        for chunk in rows.chunks():
            stream.update(chunk["features"])
        own = stream
    if own is not None and config.save_statistics is not None:
        write_statistics(Path(config.save_statistics, "real.npz"), own)
    known = own if config.statistics is None else read_statistics(config.statistics, network.dim)
    return RealImages(known, found.get("features"), found.get("labels"), dataset.class_names)


def measure_features(
    rows: Mapping[str, Rows],
    labels_N: Tensor | None,
    real: RealImages,
    network: FeatureNetwork,
    reference: str,
    config: EvaluationConfig,
) -> dict[str, Measured]:
    """Everything that compares sets of features, for every model of `rows`.

    `labels_N` are the classes of the samples, if there are any.
    """
    dense: Gaussian | None = None
    measured = {}
    with progress("comparing features", len(rows)) as advance:
        for name, found in rows.items():
            features = found.columns(("features",))["features"]
            estimates = feature_estimates(features, labels_N, network, real, dense, config)
            fields: dict[str, object] = {}
            if "fd" in estimates and real.statistics is not None:
                fields["fidelity"] = fidelity(metric_name(network), features, real.statistics)
            if "per-class" in config.metrics and labels_N is not None:
                fields["per_class"] = _per_class(features, labels_N, real)
            measured[name] = Measured(fields, estimates)
            if name == reference:
                dense = statistics(features)
            if config.save_statistics is not None:
                write_statistics(Path(config.save_statistics, f"{name}.npz"), statistics(features))
            advance(1, "")
    return measured


def _per_class(features_ND: Tensor, labels_N: Tensor, real: RealImages) -> PerClass | None:
    if real.features_MD is None or real.labels_M is None:
        return None
    rows = per_class_scores(features_ND, labels_N, real.features_MD, real.labels_M, real.class_names)
    return PerClass(COVERAGE_NEIGHBOURS, rows)


@torch.no_grad()
def feature_estimates(
    features_ND: Tensor,
    labels_N: Tensor | None,
    network: FeatureNetwork,
    real: RealImages,
    dense: Gaussian | None,
    config: EvaluationConfig,
) -> dict[str, Estimate]:
    """The metrics of a model's features that `config` asks for and that have what they need.

    `dense` are the statistics of the reference's samples, that `rfd` is the distance to; the reference has none.
    """
    counts = resample_counts(len(features_ND), config.bootstrap, config.seed, labels_N)
    found: dict[str, Estimate] = {}
    if "frechet" in config.metrics and real.statistics is not None:
        found["fd"] = frechet_estimate(features_ND, real.statistics, counts)
    if "rfid" in config.metrics and dense is not None:
        found["rfd"] = frechet_estimate(features_ND, dense, counts)
    if "kid" in config.metrics and real.features_MD is not None:
        found["kid"] = kernel_distance(features_ND, real.features_MD, counts)
    if "inception-score" in config.metrics and (logits := network.classify(features_ND)) is not None:
        found["inception_score"] = inception_score(logits, counts)
    if "prdc" in config.metrics and real.features_MD is not None:
        found |= manifold_scores(features_ND, real.features_MD, counts).estimates(counts)
    return found
