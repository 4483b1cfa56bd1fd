"""Questions that make no sense are refused before long work starts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..base.errors import DataError, ModelError, SecateurError, require
from ..data import ImageDataset, pixels
from ..data.conditions import check_conditions, null_conditions
from ..models.network import class_count, device_of, input_shape, null_class, takes_text
from ..process.base import Process
from ..process.reconstruction import Reconstruction
from ..process.samplers import check_sampler
from .config import MOST_NEIGHBOURS, NEED_REFERENCE, OF_FEATURES, OF_PAIRS, EvaluationConfig
from .metrics.consistency import MS_SSIM_PIXELS
from .metrics.perceptual import load_clip, load_lpips
from .networks import FeatureNetwork, feature_network
from .statistics import read_statistics


def check_shape(model: nn.Module, dataset: ImageDataset) -> None:
    """Find that the data was opened for another model.

    Raises:
        DataError: its shape is not the model's.
    """
    shape = input_shape(model)
    if shape != dataset.shape:
        raise DataError(f"{dataset.name} gives images {dataset.shape}; open it as load_data(source, {shape})")


def check_evaluation(
    models: Mapping[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    network: FeatureNetwork | None = None,
) -> tuple[FeatureNetwork | None, list[str]]:
    """Find what `config` asks for and these models and images cannot answer.

    Returns the feature network, `network` if it is given; None with a note where nobody asked for one by name and none
    is at hand, and None where no metric needs one.

    Raises:
        SecateurError: one line that says what to change.
    """
    model = next(iter(models.values()))
    check_conditions(model, dataset, needed=null_class(model) is None)
    if len(dataset) < 2:
        raise DataError(f"{dataset.name} has 1 image, an evaluation needs at least 2; give more data")
    if config.guidance_scale != 1.0 and not (null_conditions(model, dataset) or takes_text(model)):
        raise ModelError(f"{type(model).__name__} has no null class to guide away from; use guidance_scale 1")
    decodes = isinstance(process, Reconstruction)
    needed = NEED_REFERENCE - OF_PAIRS if decodes else NEED_REFERENCE  # a decoder's pairs are with the images too
    alone = [name for name in config.metrics if name in needed and len(models) < 2]
    require(not alone, f"{', '.join(alone)} compares with a dense model's images; give one as --reference")
    channels, height, width = pixels(dataset).shape
    small = "ms-ssim" in config.metrics and min(height, width) < MS_SSIM_PIXELS
    size = f"{height}x{width}"
    require(not small, f"ms-ssim needs images of {MS_SSIM_PIXELS} pixels a side, these are {size}; use consistency")
    if "per-class" in config.metrics and (class_count(model) is None or not dataset.class_names):
        raise SecateurError(
            f"per-class needs a class-conditional model and labels, {type(model).__name__} and {dataset.name} have not "
            "both; leave it out of --metrics"
        )
    least = (MOST_NEIGHBOURS + 1) * (class_count(model) or 0)
    each = f"per-class takes {MOST_NEIGHBOURS + 1} samples of each class, {least} in all"
    too_few = "per-class" in config.metrics and config.num_images < least
    require(not too_few, f"{each}; num_images is {config.num_images}, give more")
    if (config.draws_samples and not decodes) or "ftle" in config.metrics or config.scheduler is not None:
        check_sampler(process, config.scheduler, config.num_inference_steps)
    device = device_of(model)
    if "lpips" in config.metrics:
        load_lpips(device)
    if "clip" in config.metrics:
        if not (takes_text(model) and pixels(dataset).captions):
            both = f"{type(model).__name__} and {dataset.name} have not both"
            raise SecateurError(f"clip needs a text-to-image model and captions, {both}; leave it out of --metrics")
        load_clip(config.clip, device)
    if not config.measures_features:
        return None, []
    try:
        network = network or feature_network(config.features, channels, (height, width), device)
    except SecateurError as error:
        if config.features is not None:
            raise
        missing = [name for name in config.metrics if name in OF_FEATURES]
        return None, [f"no {', '.join(missing)}: {error}"]
    _check_network(network, config, device)
    return network, []


def _check_network(network: FeatureNetwork, config: EvaluationConfig, device: torch.device) -> None:
    """Refuse an Inception Score by a network that is no classifier, and statistics of other features."""
    if config.statistics is not None:
        read_statistics(config.statistics, network.dim)
    if "inception-score" in config.metrics and network.classify(torch.zeros(1, network.dim, device=device)) is None:
        raise SecateurError(
            f"inception-score needs a classifier, {network.name} is none; leave it out of --metrics, or use "
            "--evaluation.features FID"
        )
