"""Which metrics an evaluation measures; those that cannot be measured are refused, or noted, before long work
starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor, nn

from ..base.errors import DataError, ModelError, SecateurError
from ..data import ImageDataset, pixels
from ..data.clips import shape_side_by_side
from ..data.conditions import check_conditions, has_null_condition
from ..models.network import IMAGE_CHANNELS, class_count, input_shape, null_class, takes_text
from ..process.base import Process
from ..process.own import OwnObjective
from ..process.reconstruction import Reconstruction
from ..process.samplers import check_sampler
from .config import EvaluationConfig
from .measurement import LOOKS_AT_IMAGES, Measurement, Need, OfFeatures, OfPairs, Subject
from .metrics import METRICS
from .networks import FeatureNetwork, feature_network

LEAST_IMAGES = 2  # where there are data
DEFAULTS = ("latency", "loss", "consistency", "frechet")
WITHOUT_SAMPLES = ("latency", "loss", "output-error")
KindT = TypeVar("KindT", bound=Measurement)


@dataclass(frozen=True)
class Plan:
    """The metrics to measure of `subject`; `notes` say which of the defaults are left out, and why."""

    subject: Subject
    metrics: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()

    def of(self, kind: type[KindT]) -> tuple[KindT, ...]:
        """The metrics of one kind."""
        return tuple(metric for metric in self.metrics if isinstance(metric, kind))

    @property
    def draws_samples(self) -> bool:
        """Whether images are drawn: for a metric that needs them, and by default, to show them."""
        by_default = self.subject.config.metrics is None and makes_images(self.subject)
        return by_default or any("samples" in metric.needs for metric in self.metrics)

    @property
    def needs_real(self) -> bool:
        """Whether the data's images go through the feature network too."""
        return any(metric.needs_real(self.subject.config) for metric in self.of(OfFeatures))


def plan_evaluation(
    models: Mapping[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
    network: FeatureNetwork | None = None,
) -> Plan:
    """Check that `config` can be measured for these models and images; arguments as for `evaluate_models`.

    A named metric that cannot be measured is refused; a default one is left out with a note.

    Raises:
        SecateurError: one line that says what to change.
    """
    subject = Subject(models, process, dataset, config, decode, network)
    if subject.reconstructs and not len(dataset):
        raise DataError("a decoder is measured by the images that it gives back; give data")
    if subject.reconstructs:  # no image twice
        subject = replace(subject, config=replace(config, num_images=min(config.num_images, len(dataset))))
    _check_subject(subject)
    subject, missing = _with_network(subject)
    metrics: list[Measurement] = []
    notes: list[str] = []
    for name in config.metrics or default_metrics(subject):
        metric = METRICS[name]
        try:
            _check_needs(metric, subject, missing)
        except SecateurError as error:
            if config.metrics is not None or (metric.needs & {"features"} and config.features is not None):
                raise
            notes.append(f"no {name}: {error}")
        else:
            metric.check(subject)  # of its options, which somebody gave
            metrics.append(metric)
    plan = Plan(subject, tuple(metrics), tuple(notes))
    if config.scheduler is not None or (plan.draws_samples and not subject.reconstructs):
        check_sampler(process, config.scheduler, config.num_inference_steps)
    return plan


def default_metrics(subject: Subject) -> tuple[str, ...]:
    """The metrics by default: of images, or of outputs if there are no images."""
    compared = subject.compares or subject.reconstructs
    if not makes_images(subject):
        return WITHOUT_SAMPLES if compared else WITHOUT_SAMPLES[:-1]
    return DEFAULTS if compared else tuple(name for name in DEFAULTS if name != "consistency")


def forward_passes(config: EvaluationConfig, process: Process) -> dict[str, float]:
    """Forward passes of one sample through each model, for the samples and for each metric.

    These are upper bounds: a default metric may turn out not to be measurable.
    """
    names = config.metrics or (DEFAULTS if _draws(process) else WITHOUT_SAMPLES)
    passes = {name: METRICS[name].passes(config, process) for name in names}
    if any("samples" in METRICS[name].needs for name in names):
        calls = min(config.num_inference_steps, process.num_train_timesteps)
        guided = config.guidance_scale != 1.0
        passes = {"samples": float(config.num_images * calls * (1 + guided)), **passes}
    return {name: count for name, count in passes.items() if count}


def makes_images(subject: Subject) -> bool:
    """Whether there are images to measure: samples, or a decoder's reconstructions."""
    return _draws(subject.process) and (len(subject.dataset) > 0 or not takes_text(subject.dense))


def _draws(process: Process) -> bool:
    return isinstance(process, Reconstruction) or hasattr(process, "scheduler")


def check_shape(model: nn.Module, dataset: ImageDataset) -> None:
    """Check that the data has the shape that the model takes.

    Raises:
        DataError: its shape is not the model's.
    """
    shape = input_shape(model)
    if shape != dataset.shape:
        raise DataError(f"{dataset.name} gives images {dataset.shape}; open it as load_data(source, {shape})")


def _check_subject(subject: Subject) -> None:
    """Check that data and guidance fit the models."""
    model, dataset = subject.dense, subject.dataset
    check_shape(model, dataset)
    check_conditions(model, dataset, needed=len(dataset) > 0 and null_class(model) is None)
    if 0 < len(dataset) < LEAST_IMAGES:
        raise DataError(f"{dataset.name} has 1 image, an evaluation needs at least 2; give more data")
    if subject.config.guidance_scale != 1.0 and not has_null_condition(model, dataset):
        raise ModelError(
            f"there is no null class or empty prompt to guide {type(model).__name__} away from; use guidance_scale 1"
        )


def _with_network(subject: Subject) -> tuple[Subject, SecateurError | None]:
    """The subject with a feature network if a metric needs one; or the reason why there is none."""
    config = subject.config
    wanted = any("features" in METRICS[name].needs for name in config.metrics or default_metrics(subject))
    if subject.network is not None or not wanted:
        return subject, None
    channels, height, width = shape_side_by_side(pixels(subject.dataset).shape)
    if channels not in IMAGE_CHANNELS:
        return subject, ModelError(f"{LOOKS_AT_IMAGES}, these have {channels}; give the whole pipeline")
    try:
        network = feature_network(config.features, channels, (height, width), subject.device)
    except SecateurError as error:
        return subject, error
    return replace(subject, network=network), None


def _check_needs(metric: Measurement, subject: Subject, no_features: SecateurError | None) -> None:
    """Raise the first reason why `metric` cannot be measured on `subject`."""
    for need, reason in _missing(metric, subject).items():
        if need in metric.needs or (need == "data" and _looks_at_data(metric, subject)):
            raise SecateurError(f"{metric.name} {reason}")
    count = len(subject.dataset)
    if isinstance(metric, OfFeatures) and _looks_at_data(metric, subject) and count < metric.least_images:
        least = f"{metric.name} needs at least {metric.least_images} images of the data"
        raise SecateurError(f"{least}, {subject.dataset.name} has {count}; give more, or leave it out")
    if "features" in metric.needs and no_features is not None:
        raise no_features


def _looks_at_data(metric: Measurement, subject: Subject) -> bool:
    return isinstance(metric, OfFeatures) and metric.needs_real(subject.config)


def _missing(metric: Measurement, subject: Subject) -> dict[Need, str]:
    """What `subject` lacks, and what to do about it."""
    model, dataset = subject.dense, subject.dataset
    found: dict[Need, str] = {}
    if not len(dataset):
        found["data"] = found["captions"] = found["labels"] = "looks at images of the data; give data"
    if _draws(subject.process) and not makes_images(subject):
        found["samples"] = "looks at samples, which are drawn for the captions of the data; give data"
    elif not makes_images(subject):
        found["samples"] = f"compares samples, and {type(model).__name__} draws none here; use loss or output-error"
    if not subject.compares and not (subject.reconstructs and isinstance(metric, OfPairs)):
        found["reference"] = "compares with a dense model's images; give one as --reference"
    if isinstance(subject.process, OwnObjective):
        if subject.process.loss is None:
            found["loss"] = "needs loss=, a function (model, batch) -> scalar"
        if subject.process.forward is None:
            found["outputs"] = "needs forward=, a function (model, batch) -> output"
    if not len(dataset):
        return found
    both = f"{type(model).__name__} and {dataset.name} have not both; leave it out of --metrics"
    if class_count(model) is None or not dataset.class_names:
        found["labels"] = f"needs a class-conditional model and labels, {both}"
    if not (takes_text(model) and pixels(dataset).captions):
        found["captions"] = f"needs a text-to-image model and captions, {both}"
    return found
