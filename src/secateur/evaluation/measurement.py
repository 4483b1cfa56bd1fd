"""What a metric is: one record that says what it needs, what it gives, what it takes, and the function.

Three kinds differ in what they look at: models as they are, single images, and sets of features. `metrics/` holds one
file for each, and `metrics/__init__.py` the list of all.
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


@dataclass(frozen=True)
class Subject:
    """What is evaluated: `models`, the first of which is the reference, as networks of `process` on `dataset`.

    `decode` turns the latents of a latent model into images; `network` gives the features.
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
        """Whether there is more than the reference."""
        return len(self.models) > 1

    @property
    def device(self) -> torch.device:
        return device_of(self.dense)

    @property
    def reconstructs(self) -> bool:
        """Whether images are reconstructions of the data's, by decoders."""
        return isinstance(self.process, Reconstruction)


@dataclass(frozen=True)
class Measured:
    """What a metric says of one model: fields of its `ModelResult`, and values with their resamples by key."""

    estimates: Mapping[str, Resampled] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def nothing_else(subject: Subject) -> None:
    """The check of a metric that asks for no more than its `needs`."""


def no_passes(config: EvaluationConfig, process: Process) -> float:
    """The price of a metric of samples, which are priced once for all of them."""
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A metric that `--metrics` names.

    Attributes:
        name: on the command line and in files.
        gives: what the keys of its estimates are for people; keys that depend on options are in `described`.
        needs: what it cannot do without.
        check: raises `SecateurError` where something else that it asks for is missing.
        passes: forward passes of one sample through each model, beyond those that draw samples; the work of feature
            networks is not counted.
    """

    name: str
    gives: Mapping[str, Metric]
    needs: frozenset[Need] = frozenset()
    check: Callable[[Subject], None] = nothing_else
    passes: Callable[[EvaluationConfig, Process], float] = no_passes

    def described(self, subject: Subject) -> Mapping[str, Metric]:
        """What every key of its estimates is for people."""
        return self.gives


@dataclass(frozen=True, kw_only=True)
class OfModels(Measurement):
    """A metric of the networks themselves: speed, or outputs on the data. `measure` gives an entry for each model."""

    measure: Callable[[Subject], dict[str, Measured]]
    describe: Callable[[Subject], Mapping[str, Metric]] | None = None

    def described(self, subject: Subject) -> Mapping[str, Metric]:
        return self.gives if self.describe is None else self.describe(subject)


@dataclass(frozen=True, kw_only=True)
class OfPairs(Measurement):
    """A metric of an image and the reference's from the same noise, averaged over the pairs.

    `load` gives a function for each key. Of decoders also that of a reconstruction and the image itself: `image_` and
    the key.
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
    """Features (M, D) of the data's images in `rows`, and labels where there are any."""

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
        """Mean and covariance of the features, of which no more than a chunk is in memory."""
        stream = FeatureStatistics(self.network.dim)
        for chunk in self.rows.chunks():
            stream.update(chunk["features"])
        return stream


@dataclass(frozen=True)
class FeatureSets:
    """What a metric of features looks at: one model's samples beside the data and the reference.

    Attributes:
        name: of the model.
        features_ND: of its samples.
        labels_N: their classes, where the models know any.
        counts_RN: how often each sample is in each of the resamples (`estimates.resample_counts`).
        data: the data's images, where the metric looks at them.
        network: what gave the features.
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
        """The data's images, of a metric that looks at them."""
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
    """A metric of sets of features; those of the data are taken where `needs_real` says that they are looked at."""

    needs: frozenset[Need] = frozenset({"samples", "features"})
    measure: Callable[[FeatureSets, EvaluationConfig], Measured]
    needs_real: Callable[[EvaluationConfig], bool] = looks_at_the_data
    least_images: int = 2

    def described(self, subject: Subject) -> Mapping[str, Metric]:
        """Only InceptionV3's numbers are called FID, KID and IS; others carry the network's name."""
        if subject.network is None:
            return self.gives
        network = subject.network
        return {
            key: Metric(metric_name(network, metric.label), metric.better, metric.against, metric.unit)
            for key, metric in self.gives.items()
        }
