"""Compare models at one stroke: cost, denoising loss, distance from the dense model and from the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..base.distributed import is_main_process, process_count, wait_for_everyone
from ..base.errors import SecateurError
from ..base.rows import Rows
from ..data import ImageDataset, calibration_batch, pixels
from ..data.conditions import sample_labels
from ..models.conditions import LABELS
from ..models.network import device_of
from ..process.base import Process
from ..process.reconstruction import Reconstruction
from ..results import DataInfo, Environment, Evaluation, ModelResult, to_json
from .checks import check_evaluation, check_shape
from .config import EvaluationConfig
from .costs import measure_costs
from .dynamics import measure_loss, measure_lyapunov
from .estimates import comparisons
from .measured import Measured, joined
from .metric import describe_metric
from .networks import FeatureNetwork
from .quality import all_finite, measure_features, measure_pairs, measure_reconstructions, measure_text, read_real
from .samples import IMAGES_SHOWN, Decode, Instruments, pair_metrics, real_rows, sample_rows, shown_images, text_metrics

NOT_FINITE = "some samples are not finite, so they are not compared"


def evaluate_models(
    models: Mapping[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    decode: Decode | None = None,
    *,
    cache: Path | None = None,
    network: FeatureNetwork | None = None,
) -> tuple[Evaluation | None, dict[str, Tensor]]:
    """Measure `models`, the first of which is the dense reference; `decode` turns latents into images.

    The samples of decoders are reconstructions of the data's images, each once.

    Returns the result, which docs/metrics.md describes, and tensors to look at: the first 64 images of each model,
    (64, C, H, W) in [-1, 1], drawn from the same seeds, up to 64 images of the data as `real`, and `class_labels` (64,)
    of the samples if there are any; classes take turns.

    What was measured image by image is kept in the folder `cache` and found there again, by any evaluation that draws
    the same samples of the same model; without one it is kept in memory. Several processes share a cache and each
    measures its part; all but the first return None. `network` replaces the one that `config.features` names.

    Raises:
        ModelError: `config.features` cannot be loaded, or guidance is asked of a model without a null class.
        DataError: the labels do not fit the models' classes, or there are fewer than two images.
        SecateurError: a metric or a scheduler that makes no sense here; several processes without a cache.
    """
    reference, dense = next(iter(models.items()))
    device = device_of(dense)
    check_shape(dense, dataset)
    decodes = isinstance(process, Reconstruction)
    if decodes:  # no image twice
        config = replace(config, num_images=min(config.num_images, len(dataset)))
    network, notes = check_evaluation(models, process, dataset, config, network)
    if cache is None and process_count() > 1:
        raise SecateurError("several processes evaluate through a folder that they share; give one as cache")
    pairs = pair_metrics(config, device) if len(models) > 1 or decodes else {}
    instruments = Instruments(network, pairs, decode, text_metrics(config, device))
    rows = sample_rows(models, process, dataset, config, instruments, cache) if config.draws_samples else {}
    needed = network is not None and config.needs_real_features
    real = real_rows(pixels(dataset), network, config, device, cache) if network is not None and needed else None
    wait_for_everyone(on_cpu=device.type == "cpu")
    if not is_main_process():
        return None, {}
    measured = _measure(models, process, dataset, config, network, rows, real)
    images = {name: shown_images(found) for name, found in rows.items()}
    metrics = {key: describe_metric(key, network, decodes) for found in measured.values() for key in found.estimates}
    estimates = {name: found.estimates for name, found in measured.items()}
    result = Evaluation(
        reference=reference,
        models={name: _model_result(found) for name, found in measured.items()},
        metrics=metrics,
        comparisons=comparisons(estimates, {key: metric.better for key, metric in metrics.items()}),
        data=DataInfo(dataset.name, len(dataset), tuple(pixels(dataset).shape)),
        environment=_environment(device),
        config=to_json(config),
        notes=tuple(notes),
        reconstructions=decodes,
    )
    return result, images | _to_look_at(dense, dataset, config)


def _measure(
    models: Mapping[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    network: FeatureNetwork | None,
    rows: Mapping[str, Rows],
    real: Rows | None,
) -> dict[str, Measured]:
    """Every family of metrics of every model."""
    families = [measure_costs(models, config)]
    if "loss" in config.metrics:
        families.append({name: measure_loss(model, process, dataset, config) for name, model in models.items()})
    if "ftle" in config.metrics:
        families.append({name: measure_lyapunov(model, process, dataset, config) for name, model in models.items()})
    compared = {name: found for name, found in rows.items() if all_finite(found)}
    families.append({name: Measured(notes=(NOT_FINITE,)) for name in rows if name not in compared})
    families.append({name: measure_pairs(found, config) for name, found in compared.items()})
    families.append({name: measure_reconstructions(found, config) for name, found in compared.items()})
    families.append({name: measure_text(found, config) for name, found in compared.items()})
    if network is not None:
        reference, dense = next(iter(models.items()))
        families.append(
            measure_features(
                compared,
                sample_labels(dense, range(config.num_images)),
                read_real(real, pixels(dataset), network, config),
                network,
                reference,
                config,
            )
        )
    return {name: joined(family.get(name, Measured()) for family in families) for name in models}


def _model_result(found: Measured) -> ModelResult:
    estimates = {key: estimate.described for key, estimate in found.estimates.items()}
    return ModelResult(**found.fields, estimates=estimates, notes=found.notes)


def _to_look_at(model: nn.Module, dataset: ImageDataset, config: EvaluationConfig) -> dict[str, Tensor]:
    shown = {"real": calibration_batch(pixels(dataset), IMAGES_SHOWN, config.seed).sample}
    labels = sample_labels(model, range(min(IMAGES_SHOWN, config.num_images)))
    return shown if labels is None else shown | {LABELS: labels}


def _environment(device: torch.device) -> Environment:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Environment(name, torch.get_num_threads(), str(torch.__version__))
