"""Denoising loss over the timesteps: where in time a pruned model fails."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data import Batch
from ..inputs import device_of, inference
from ..process import Process, denoising_error


def denoising_loss_per_timestep(
    model: nn.Module, process: Process, batch: Batch, bins: int = 10, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Timesteps (bins,) from clean to noise, and the mean denoising error at each, (bins,), both on the CPU.

    Every model sees the same noise, one draw per image and bin.
    """
    device = device_of(model)
    batch = batch.to(device)
    generator = torch.Generator().manual_seed(seed)
    timesteps = process.timesteps((torch.arange(bins) + 0.5) / bins)
    losses = []
    with inference(model):
        for timestep in timesteps:
            noise = torch.randn(batch.sample.shape, generator=generator).to(device)
            t_B = timestep.expand(len(noise)).to(device)
            error = denoising_error(model, process, batch.sample, noise, t_B, batch.class_labels)
            losses.append(error.mean().cpu())
    return timesteps, torch.stack(losses)
