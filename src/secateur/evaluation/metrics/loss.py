"""Denoising loss by timestep, which shows at which timesteps a pruned model fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...base.seeds import Purpose, normal
from ...data import Batch, ImageDataset, calibration_batch
from ...data.conditions import accepts
from ...models.conditions import LABELS, rows
from ...models.network import device_of, inference, null_class
from ...process.base import Process, denoising_error
from ...results.measured import Losses, Metric
from ..estimates import mean_estimate, resample_counts
from ..measurement import Measured, OfModels, Subject

if TYPE_CHECKING:
    from ..config import EvaluationConfig

LOSS_IMAGES = 128
BINS = 10


def denoising_loss_per_timestep(
    model: nn.Module, process: Process, batch: Batch, bins: int = BINS, seed: int = 0, batch_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Timesteps (bins,) from clean to noise, and the mean denoising error at each, (bins,), both on the CPU."""
    timesteps, errors = denoising_errors(model, process, batch, bins, seed, batch_size)
    return timesteps, errors.mean(1)


def denoising_errors(
    model: nn.Module, process: Process, batch: Batch, bins: int = BINS, seed: int = 0, batch_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Timesteps (bins,) from clean to noise, and the denoising error of each image there, (bins, B), both on the CPU.

    There are no more bins than timesteps. Every model sees the same noise, one draw per image and bin, whatever the
    `batch_size`.
    """
    batch, bins = batch.to(device_of(model)), min(bins, process.num_train_timesteps)
    chunks = [slice(start, start + batch_size) for start in range(0, len(batch.sample), batch_size)]
    timesteps = process.timesteps((torch.arange(bins) + 0.5) / bins)
    per_timestep = []
    with inference(model):
        for step, timestep in enumerate(timesteps):
            noise = loss_noise(batch, seed, step)
            t_B = timestep.expand(len(noise)).to(noise.device)
            errors = []
            for chunk in chunks:
                arguments = batch.sample[chunk], noise[chunk], t_B[chunk], rows(batch.conditions, chunk)
                errors.append(denoising_error(model, process, *arguments))
            per_timestep.append(torch.cat(errors).cpu())
    return timesteps, torch.stack(per_timestep)


def loss_noise(batch: Batch, seed: int, step: int) -> Tensor:
    """The noise (B, C, H, W) of each image of `batch` at the timestep with index `step`."""
    return normal(batch.sample.shape[1:], range(len(batch.sample)), seed, Purpose.LOSS, step=step).to(batch.sample)


def loss_batch(model: nn.Module, dataset: ImageDataset, seed: int, count: int = LOSS_IMAGES) -> Batch:
    """Images of the data with the conditions that the model takes: the data's, or its null class."""
    batch = calibration_batch(dataset, count, seed)
    null = null_class(model)
    if batch.class_labels is None and null is not None:
        return Batch(batch.sample, {LABELS: torch.full((len(batch.sample),), null)})
    return Batch(batch.sample, accepts(model)(batch.conditions))


def measure(subject: Subject) -> dict[str, Measured]:
    """Loss per timestep, on the same images and noise for every model."""
    return {name: _of_model(model, subject) for name, model in subject.models.items()}


def _of_model(model: nn.Module, subject: Subject) -> Measured:
    config = subject.config
    batch = loss_batch(model, subject.dataset, config.seed)
    timesteps, errors = denoising_errors(model, subject.process, batch, seed=config.seed, batch_size=config.batch_size)
    counts = resample_counts(errors.shape[1], config.bootstrap, config.seed)
    means = errors.mean(1).tolist()
    losses = Losses(tuple(timesteps.tolist()), tuple(loss if math.isfinite(loss) else None for loss in means))
    return Measured({"denoising_loss": mean_estimate(errors.mean(0), counts)}, {"denoising_loss": losses})


def describe(subject: Subject) -> Mapping[str, Metric]:
    """The description of the loss, which differs between denoisers and decoders."""
    label = "mean reconstruction error" if subject.reconstructs else "mean denoising loss"
    return {"denoising_loss": Metric(label, "lower", "data")}


def passes(config: EvaluationConfig, process: Process) -> float:
    """One of each image at each timestep."""
    return float(LOSS_IMAGES * min(BINS, process.num_train_timesteps))


LOSS = OfModels(
    name="loss", gives={}, needs=frozenset({"loss", "data"}), passes=passes, measure=measure, describe=describe
)
