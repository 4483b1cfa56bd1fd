"""Questions that make no sense are refused before long work starts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..data import ImageDataset
from ..errors import DataError, ModelError, SecateurError, require
from ..inputs import class_count, input_shape, null_class
from ..process import Process
from ..recovery.conditioning import check_conditions, null_conditions
from ..samplers import check_sampler
from .config import NEED_REFERENCE, EvaluationConfig
from .consistency import MS_SSIM_PIXELS
from .features import FeatureNetwork
from .statistics import read_statistics


def check_evaluation(
    models: Mapping[str, nn.Module], process: Process, dataset: ImageDataset, config: EvaluationConfig
) -> None:
    """Find what `config` asks for and these models and data cannot answer.

    Raises:
        SecateurError: one line that says what to change.
    """
    model = next(iter(models.values()))
    shape = input_shape(model)
    if shape != dataset.shape:
        raise DataError(f"{dataset.name} gives images {dataset.shape}; open it as load_data(source, {shape})")
    check_conditions(model, dataset, needed=null_class(model) is None)
    if len(dataset) < 2:
        raise DataError(f"{dataset.name} has 1 image, an evaluation needs at least 2; give more data")
    if config.guidance_scale != 1.0 and not null_conditions(model, dataset):
        raise ModelError(f"{type(model).__name__} has no null class to guide away from; use guidance_scale 1")
    alone = [name for name in config.metrics if name in NEED_REFERENCE and len(models) < 2]
    require(not alone, f"{', '.join(alone)} compares with a dense model's images; give one as --reference")
    small = "ms-ssim" in config.metrics and min(shape[1:]) < MS_SSIM_PIXELS
    size = f"{shape[1]}x{shape[2]}"
    require(not small, f"ms-ssim needs images of {MS_SSIM_PIXELS} pixels a side, these are {size}; use consistency")
    if "per-class" in config.metrics and (class_count(model) is None or not dataset.class_names):
        raise SecateurError(
            f"per-class needs a class-conditional model and labels, {type(model).__name__} and {dataset.name} have not "
            "both; leave it out of --metrics"
        )
    if config.draws_samples or "ftle" in config.metrics:
        check_sampler(process, config.scheduler, config.num_inference_steps)


def check_network(network: FeatureNetwork, config: EvaluationConfig, device: torch.device) -> None:
    """Find that the feature network cannot answer.

    Raises:
        SecateurError: an Inception Score by a network that is no classifier; statistics of other features.
    """
    if config.statistics is not None:
        read_statistics(config.statistics, network.dim)
    if "inception-score" in config.metrics and network.classify(torch.zeros(1, network.dim, device=device)) is None:
        raise SecateurError(
            f"inception-score needs a classifier, {network.name} is none; leave it out of --metrics, or use "
            "--evaluation.features FID"
        )
