"""What needs the network and the process, but no samples: denoising loss and Lyapunov exponent, for the evaluation."""

from __future__ import annotations

import torch
from torch import nn

from ..data import Batch, ImageDataset, calibration_batch
from ..data.conditions import accepts, sample_conditions
from ..models.conditions import LABELS, moved
from ..models.network import device_of, input_shape, null_class
from ..process.base import Process
from ..process.sampling import initial_noise
from ..results import Losses
from .config import EvaluationConfig
from .estimates import mean_estimate, resample_counts
from .measured import Measured, number
from .metrics.denoising import denoising_errors
from .metrics.lyapunov import finite_time_lyapunov_exponents

LOSS_IMAGES = 128


def measure_loss(model: nn.Module, process: Process, dataset: ImageDataset, config: EvaluationConfig) -> Measured:
    """Denoising loss per timestep over 128 images of the data, the same images and noise for every model."""
    batch = _loss_batch(model, dataset, config)
    timesteps, errors = denoising_errors(model, process, batch, seed=config.seed, batch_size=config.batch_size)
    counts = resample_counts(errors.shape[1], config.bootstrap, config.seed)
    losses = Losses(tuple(timesteps.tolist()), tuple(map(number, errors.mean(1).tolist())))
    return Measured({"denoising_loss": losses}, {"denoising_loss": mean_estimate(errors.mean(0), counts)})


def _loss_batch(model: nn.Module, dataset: ImageDataset, config: EvaluationConfig) -> Batch:
    """Images with the labels that the model takes: none, the data's, or its null class."""
    batch = calibration_batch(dataset, LOSS_IMAGES, config.seed)
    null = null_class(model)
    if batch.class_labels is None and null is not None:
        return Batch(batch.sample, {LABELS: torch.full((len(batch.sample),), null)})
    return Batch(batch.sample, accepts(model)(batch.conditions))


def measure_lyapunov(model: nn.Module, process: Process, dataset: ImageDataset, config: EvaluationConfig) -> Measured:
    """The sampler's finite-time Lyapunov exponent, from the same noise for every model."""
    noise = initial_noise(range(config.seed, config.seed + config.ftle_images), input_shape(model))
    conditions = sample_conditions(model, dataset, range(config.ftle_images), config.seed)
    exponents = finite_time_lyapunov_exponents(
        model,
        process,
        noise.to(device_of(model)),
        moved(conditions, device_of(model)),
        num_inference_steps=config.num_inference_steps,
        iterations=config.ftle_iterations,
        seed=config.seed,
    )
    counts = resample_counts(len(exponents), config.bootstrap, config.seed)
    return Measured(estimates={"ftle": mean_estimate(exponents, counts)})
