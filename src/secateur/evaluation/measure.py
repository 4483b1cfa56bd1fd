"""Compare models: cost, denoising loss, distance from the dense model and from the data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.console import progress
from ..base.distributed import is_main_process, process_count, wait_for_everyone
from ..base.errors import require
from ..base.rows import Rows
from ..data import ImageDataset, calibration_batch, pixels
from ..data.clips import side_by_side
from ..data.conditions import sample_captions, sample_labels
from ..io.manifest import removed_since
from ..models.conditions import LABELS
from ..models.network import takes_text
from ..models.precision import precision_of
from ..process.base import Process
from ..results.evaluation import DataInfo, Environment, Evaluation
from ..results.measured import ModelResult
from .config import EvaluationConfig
from .costs import costs_of
from .estimates import comparisons, mean_estimate, resample_counts
from .measurement import FeatureSets, Measured, OfCaptions, OfFeatures, OfModels, OfPairs, RealImages
from .networks import FeatureNetwork
from .plan import Plan, plan_evaluation
from .samples import IMAGES_SHOWN, real_rows, sample_rows, shown_images

NOT_FINITE = "some samples are not finite, so they are not compared"


def evaluate_models(
    models: Mapping[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    decode: Callable[[Tensor], Tensor] | None = None,
    *,
    cache: Path | None = None,
    network: FeatureNetwork | None = None,
) -> tuple[Evaluation | None, dict[str, Tensor]]:
    """Measure `models`, the first of which is the dense reference; `decode` turns latents into images.

    Samples of decoders are reconstructions of the data's images, one of each. For networks that draw no samples, costs,
    loss and output error are measured.

    Returns the result, and images to show: the first 64 samples of each model, (64, C, H, W) in [-1, 1], drawn from the
    same seeds; up to 64 images of the data as `real`; and `class_labels` (64,) of the samples if there are any, all
    classes in turn.

    Measurements of single images are kept in the folder `cache`, where any evaluation of the same samples of the same
    model finds them; without it they are in memory. Several processes share a cache and measure a part each; all but
    the first return None and no images. `network` replaces the one that `config.features` names.

    Raises:
        ModelError: `config.features` cannot be loaded, or guidance is asked of a model without a null class.
        DataError: the labels do not fit the models' classes, or there are fewer than two images.
        SecateurError: a metric or a scheduler that cannot be used here; or several processes without a cache.
    """
    alone = cache is not None or process_count() == 1
    require(alone, "several processes evaluate through a folder that they share; give one as cache")
    plan = plan_evaluation(models, process, dataset, config, decode=decode, network=network)
    subject = plan.subject
    rows = sample_rows(plan, cache) if plan.draws_samples else {}
    real = real_rows(subject, cache) if plan.needs_real else None
    wait_for_everyone(on_cpu=subject.device.type == "cpu")
    if not is_main_process():
        return None, {}
    measured = _measure(plan, rows, real)
    described = {key: metric for planned in plan.metrics for key, metric in planned.described(subject).items()}
    keys = dict.fromkeys(key for found in measured.values() for key in found.estimates)
    metrics = {key: metric for key, metric in described.items() if key in keys}
    estimates = {name: found.estimates for name, found in measured.items()}
    images = pixels(dataset)
    evaluation = Evaluation(
        reference=subject.reference,
        models={name: _result(subject.models[name], subject.dense, found) for name, found in measured.items()},
        metrics=metrics,
        comparisons=comparisons(estimates, {key: metric.better for key, metric in metrics.items()}),
        data=DataInfo(dataset.name, len(dataset), images.shape, tuple(images.class_names)) if len(dataset) else None,
        environment=_environment(subject.device),
        config=_settings(plan),
        notes=plan.notes,
        captions=_captions(plan),
        reconstructions=subject.reconstructs,
    )
    return evaluation, {name: shown_images(found) for name, found in rows.items()} | _to_look_at(plan)


def _measure(plan: Plan, rows: Mapping[str, Rows], real: Rows | None) -> dict[str, Measured]:
    """All measurements of every model."""
    subject = plan.subject
    parts: dict[str, list[Measured]] = {name: [] for name in subject.models}
    for metric in plan.of(OfModels):
        for name, measured in metric.measure(subject).items():
            parts[name].append(measured)
    compared = {name: found for name, found in rows.items() if _all_finite(found)}
    for name, found in rows.items():
        parts[name].append(_of_single_images(plan, found) if name in compared else Measured(notes=(NOT_FINITE,)))
    of_features = _of_features(plan, compared, real) if plan.of(OfFeatures) else {}
    return {name: _joined([*found, *of_features.get(name, [])]) for name, found in parts.items()}


def _all_finite(rows: Rows) -> bool:
    """Whether no sample diverged."""
    return all(bool(chunk["finite"].all()) for chunk in rows.chunks())


def _of_single_images(plan: Plan, rows: Rows) -> Measured:
    """Means of measurements of single images."""
    config = plan.subject.config
    of_images = (*plan.of(OfPairs), *plan.of(OfCaptions))
    keys = [key for metric in of_images for key in metric.described(plan.subject)]
    estimates = {}
    for key, values in rows.columns(keys).items():
        estimates[key] = mean_estimate(values, resample_counts(len(values), config.bootstrap, config.seed))
    return Measured(estimates)


@torch.no_grad()
def _of_features(plan: Plan, rows: Mapping[str, Rows], real: Rows | None) -> dict[str, list[Measured]]:
    """Every metric of features of every model of `rows`."""
    subject, config, network = plan.subject, plan.subject.config, plan.subject.network
    assert network is not None
    labels = sample_labels(subject.dense, range(config.num_images))
    images = None if real is None else RealImages(real, network, pixels(subject.dataset).class_names)
    counts = resample_counts(config.num_images, config.bootstrap, config.seed, labels)
    dense: Tensor | None = None
    found: dict[str, list[Measured]] = {}
    with progress("comparing features", len(rows)) as advance:
        for name, of_model in rows.items():
            features = of_model.columns(("features",))["features"]
            sets = FeatureSets(name, features, labels, counts, images, network, dense)
            found[name] = [metric.measure(sets, config) for metric in plan.of(OfFeatures)]
            if name == subject.reference:
                dense = features
            advance(1, "")
    return found


def _joined(parts: Iterable[Measured]) -> Measured:
    """All measurements of a model, without values that are not finite, such as the PSNR of equal images."""
    joined = Measured()
    for part in parts:
        finite = {key: found for key, found in part.estimates.items() if found.finite}
        joined = Measured({**joined.estimates, **finite}, {**joined.fields, **part.fields}, joined.notes + part.notes)
    return joined


def _result(model: nn.Module, dense: nn.Module, found: Measured) -> ModelResult:
    fields: dict[str, Any] = {"dtype": precision_of(model), **costs_of(model), **found.fields}
    estimates = {key: estimate.interval.estimate for key, estimate in found.estimates.items()}
    removed = tuple(removed_since(model, dense))
    return ModelResult(**fields, estimates=estimates, removed_blocks=removed, notes=found.notes)


def _settings(plan: Plan) -> dict[str, Any]:
    """The config as plain JSON values, with the metrics actually used."""
    settings = asdict(plan.subject.config) | {"metrics": [metric.name for metric in plan.metrics]}
    return json.loads(json.dumps(settings))


def _to_look_at(plan: Plan) -> dict[str, Tensor]:
    """Images of the data, and the classes of the samples."""
    subject, config = plan.subject, plan.subject.config
    shown = {}
    if len(subject.dataset):
        real = calibration_batch(pixels(subject.dataset), IMAGES_SHOWN, config.seed).sample
        shown = {"real": side_by_side(real)}
    labels = sample_labels(subject.dense, range(min(IMAGES_SHOWN, config.num_images)))
    return shown if labels is None else shown | {LABELS: labels}


def _captions(plan: Plan) -> tuple[str, ...]:
    """The prompts of the samples that are kept; empty if the models take no text."""
    dataset, config = plan.subject.dataset, plan.subject.config
    if not (plan.draws_samples and takes_text(plan.subject.dense) and dataset.captions):
        return ()
    return tuple(sample_captions(dataset, range(min(IMAGES_SHOWN, config.num_images)), config.seed))


def _environment(device: torch.device) -> Environment:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Environment(name, torch.get_num_threads(), str(torch.__version__))
