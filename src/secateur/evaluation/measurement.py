"""The definition of a metric: a record of what it needs, its results, its cost, and the function.

There are metrics of models, of single images, and of sets of features. `metrics/` has one file for each metric, and
`metrics/__init__.py` the list of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..base.rows import Rows
from ..data import ImageDataset
from ..models.network import device_of
from ..process.base import Process
from ..process.reconstruction import Reconstruction
from ..results.measured import Metric
from .estimates import Resampled
from .networks import FeatureNetwork, metric_name
from .statistics import FeatureStatistics, Gaussian, statistics

if TYPE_CHECKING:
    from .config import EvaluationConfig

Need = Literal["loss", "outputs", "samples", "reference", "features", "data", "labels", "captions"]
PairDistance = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W) twice -> (B,)
CaptionScore = Callable[[Tensor, Sequence[str]], Tensor]  # (B, C, H, W), B captions -> (B,)
LOOKS_AT_IMAGES = "networks for images take 1 or 3 channels"


@dataclass(frozen=True)
class Subject:
    """What is evaluated: `models`, the first of which is the reference, with their `process` and `dataset`.

    `decode` turns the latents of a latent model into images; `network` computes the features.
    """

    models: Mapping[str, nn.Module]
    process: Process
    dataset: ImageDataset
    config: EvaluationConfig
    decode: Callable[[Tensor], Tensor] | None = None
    network: FeatureNetwork | None = None

    @property
    def reference(self) -> str:
        """The name of the reference."""
        return next(iter(self.models))

    @property
    def dense(self) -> nn.Module:
        """The reference."""
        return self.models[self.reference]

    @property
    def compares(self) -> bool:
        """Whether there are models beside the reference."""
        return len(self.models) > 1

    @property
    def device(self) -> torch.device:
        return device_of(self.dense)

    @property
    def reconstructs(self) -> bool:
        """Whether the images are reconstructions of the data by decoders."""
        return isinstance(self.process, Reconstruction)


@dataclass(frozen=True)
class Measured:
    """A metric's measurements of one model: fields of its `ModelResult`, and values with their resamples by key."""

    estimates: Mapping[str, Resampled] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def nothing_else(subject: Subject) -> None:
    """The check of a metric without further requirements than its `needs`."""


def no_passes(config: EvaluationConfig, process: Process) -> float:
    """The cost of a metric of samples: none, since the samples are counted once for all metrics."""
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A metric that `--metrics` names.

    Attributes:
        name: its name on the command line and in files.
        gives: descriptions of the keys of its estimates; keys that depend on options are in `described`.
        needs: what it requires.
        check: raises `SecateurError` if a further requirement is not met.
        passes: forward passes of one sample through each model, beyond those that draw samples; the work of feature
            networks is not counted.
    """

    name: str
    gives: Mapping[str, Metric]
    needs: frozenset[Need] = frozenset()
    check: Callable[[Subject], None] = nothing_else
    passes: Callable[[EvaluationConfig, Process], float] = no_passes

    def described(self, subject: Subject) -> Mapping[str, Metric]:
        """Descriptions of the keys of its estimates."""
        return self.gives


@dataclass(frozen=True, kw_only=True)
class OfModels(Measurement):
    """A metric of the networks themselves: speed, or outputs on the data. `measure` returns an entry for each model."""

    measure: Callable[[Subject], dict[str, Measured]]
    describe: Callable[[Subject], Mapping[str, Metric]] | None = None

    def described(self, subject: Subject) -> Mapping[str, Metric]:
        return self.gives if self.describe is None else self.describe(subject)


@dataclass(frozen=True, kw_only=True)
class OfPairs(Measurement):
    """A metric of an image and the reference's from the same noise, averaged over the pairs.

    `load` returns a function for each key. For decoders, reconstructions are also compared with the images themselves,
    under `image_` and the key.
    """

    load: Callable[[Subject], Mapping[str, PairDistance]]

    def described(self, subject: Subject) -> Mapping[str, Metric]:
        if not subject.reconstructs:
            return self.gives
        to_the_image = {
            f"image_{key}": Metric(f"{metric.label} to the image", metric.better, "data", metric.unit)
            for key, metric in self.gives.items()
        }
        return {**self.gives, **to_the_image}


@dataclass(frozen=True, kw_only=True)
class OfCaptions(Measurement):
    """A metric of an image and the caption that it was drawn for, averaged over the samples."""

    load: Callable[[Subject], Mapping[str, CaptionScore]]


@dataclass(frozen=True)
class RealImages:
    """Features (M, D) of the data's images in `rows`, and labels if there are any."""

    rows: Rows
    network: FeatureNetwork
    class_names: tuple[str, ...] = ()

    @cached_property
    def features_MD(self) -> Tensor:
        return self.rows.columns(("features",))["features"]

    @cached_property
    def labels_M(self) -> Tensor | None:
        return self.rows.columns(("labels",)).get("labels")

    @cached_property
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of the features, with only one chunk in memory at a time."""
        stream = FeatureStatistics(self.network.dim)
        for chunk in self.rows.chunks():
            stream.update(chunk["features"])
        return stream


@dataclass(frozen=True)
class FeatureSets:
    """The input of a metric of features: one model's samples beside the data and the reference.

    Attributes:
        name: name of the model.
        features_ND: of its samples.
        labels_N: their classes, if the models have any.
        counts_RN: how often each sample occurs in each resample (`estimates.resample_counts`).
        data: the data's images, if the metric uses them.
        network: the feature network.
        dense_ND: features of the reference's samples; None for the reference itself.
    """

    name: str
    features_ND: Tensor
    labels_N: Tensor | None
    counts_RN: Tensor
    data: RealImages | None
    network: FeatureNetwork
    dense_ND: Tensor | None = None

    @property
    def real(self) -> RealImages:
        """The data's images, for a metric that uses them."""
        assert self.data is not None
        return self.data

    @cached_property
    def dense(self) -> Gaussian | None:
        """Mean and covariance of the reference's samples."""
        return None if self.dense_ND is None else statistics(self.dense_ND)


def looks_at_the_data(config: EvaluationConfig) -> bool:
    return True


def looks_at_samples_only(config: EvaluationConfig) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class OfFeatures(Measurement):
    """A metric of sets of features; `needs_real` says whether it uses those of the data."""

    needs: frozenset[Need] = frozenset({"samples", "features"})
    measure: Callable[[FeatureSets, EvaluationConfig], Measured]
    needs_real: Callable[[EvaluationConfig], bool] = looks_at_the_data
    least_images: int = 2

    def described(self, subject: Subject) -> Mapping[str, Metric]:
        """Only values with InceptionV3 are called FID, KID and IS; others have the network's name."""
        if subject.network is None:
            return self.gives
        network = subject.network
        return {
            key: Metric(metric_name(network, metric.label), metric.better, metric.against, metric.unit)
            for key, metric in self.gives.items()
        }
