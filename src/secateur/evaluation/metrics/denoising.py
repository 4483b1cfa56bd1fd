"""Denoising loss over the timesteps: where in time a pruned model fails."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...data import Batch
from ...models.conditions import rows
from ...models.network import device_of, inference
from ...process.base import Process, denoising_error


def denoising_loss_per_timestep(
    model: nn.Module, process: Process, batch: Batch, bins: int = 10, seed: int = 0, batch_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Timesteps (bins,) from clean to noise, and the mean denoising error at each, (bins,), both on the CPU."""
    timesteps, errors = denoising_errors(model, process, batch, bins, seed, batch_size)
    return timesteps, errors.mean(1)


def denoising_errors(
    model: nn.Module, process: Process, batch: Batch, bins: int = 10, seed: int = 0, batch_size: int = 128
) -> tuple[Tensor, Tensor]:
    """Timesteps (bins,) from clean to noise, and the denoising error of each image there, (bins, B), both on the CPU.

    There are no more bins than timesteps. Every model sees the same noise, one draw per image and bin, whatever the
    `batch_size`.
    """
    batch, bins = batch.to(device_of(model)), min(bins, process.num_train_timesteps)
    chunks = [slice(start, start + batch_size) for start in range(0, len(batch.sample), batch_size)]
    generator = torch.Generator().manual_seed(seed)
    timesteps = process.timesteps((torch.arange(bins) + 0.5) / bins)
    per_timestep = []
    with inference(model):
        for timestep in timesteps:
            noise = torch.randn(batch.sample.shape, generator=generator).to(batch.sample)
            t_B = timestep.expand(len(noise)).to(noise.device)
            errors = []
            for chunk in chunks:
                arguments = batch.sample[chunk], noise[chunk], t_B[chunk], rows(batch.conditions, chunk)
                errors.append(denoising_error(model, process, *arguments))
            per_timestep.append(torch.cat(errors).cpu())
    return timesteps, torch.stack(per_timestep)
