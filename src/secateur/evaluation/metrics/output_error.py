"""Distance of a model's outputs from the reference's on the same inputs, for models that draw no samples."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...data import Batch
from ...models.conditions import rows
from ...models.network import device_of, inference
from ...models.predict import predict
from ...process.base import Process
from ...results.measured import Metric
from ..estimates import ratio_estimate, resample_counts
from ..measurement import Measured, OfModels, Subject
from .loss import BINS, loss_batch, loss_noise, passes


def output_errors(
    model: nn.Module,
    reference: nn.Module,
    process: Process,
    batch: Batch,
    bins: int = BINS,
    seed: int = 0,
    batch_size: int = 128,
) -> tuple[Tensor, Tensor]:
    """Squared distance of each image's outputs from the reference's, and squared norm of the latter, (B,) float64 each.

    Sums over `bins` timesteps, with the noise of `denoising_errors`.
    """
    device = device_of(reference)
    batch, bins = batch.to(device), min(bins, process.num_train_timesteps)
    distance, norm = torch.zeros(2, len(batch.sample), dtype=torch.float64)
    with inference(model), inference(reference):
        for step, timestep in enumerate(process.timesteps((torch.arange(bins) + 0.5) / bins)):
            noise_BCHW = loss_noise(batch, seed, step)
            for start in range(0, len(batch.sample), batch_size):
                chunk = slice(start, start + batch_size)
                conditions, t_B = rows(batch.conditions, chunk), timestep.expand(len(noise_BCHW[chunk])).to(device)
                x_t = process.add_noise(batch.sample[chunk], noise_BCHW[chunk], t_B)
                ours, theirs = (predict(network, x_t, t_B, conditions).cpu().double() for network in (model, reference))
                distance[chunk] += (ours - theirs).square().flatten(1).sum(1)
                norm[chunk] += theirs.square().flatten(1).sum(1)
    return distance, norm


def measure(subject: Subject) -> dict[str, Measured]:
    """The relative error of every model but the reference."""
    config = subject.config
    batch = loss_batch(subject.dense, subject.dataset, config.seed)
    counts = resample_counts(len(batch.sample), config.bootstrap, config.seed)
    found = {}
    for name, model in subject.models.items():
        if name != subject.reference:
            distance, norm = output_errors(
                model, subject.dense, subject.process, batch, seed=config.seed, batch_size=config.batch_size
            )
            found[name] = Measured({"output_error": ratio_estimate(distance, norm, counts)})
    return found


OUTPUT_ERROR = OfModels(
    name="output-error",
    gives={"output_error": Metric("relative squared error of the outputs", "lower", "reference")},
    needs=frozenset({"reference", "outputs", "data"}),
    passes=passes,
    measure=measure,
)
