"""Calibration tuples: images with a timestep, noise and conditions, the same for both models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base.distributed import process_count, process_index
from ..base.seeds import seed_of
from ..data import Batch
from ..models.conditions import UNCONDITIONAL, Conditions, dropped, rows
from ..models.predict import predict
from ..process.base import Process, timesteps_at
from .config import CompensationConfig

TIMES, NOISE, POSITIONS = range(3)  # streams of randomness


@dataclass(frozen=True)
class Tuples:
    """A micro-batch: x_t (B, C, H, W), timesteps (B,) in the network's unit, and the number of each tuple."""

    noisy: Tensor
    timesteps: Tensor
    conditions: Conditions
    numbers: tuple[int, ...]

    def run(self, model: nn.Module) -> Callable[[], Tensor]:
        """The call of `model` on these."""
        return lambda: predict(model, self.noisy, self.timesteps, self.conditions)


def draw_tuples(
    process: Process, batch: Batch, config: CompensationConfig, null: Conditions = UNCONDITIONAL
) -> list[Tuples]:
    """This process's share of `config.num_tuples`, in micro-batches.

    Timesteps are spread over the whole range, one at random in each of as many bins, in random order. A tuple's draws
    depend on its number and `config.seed` alone, not on micro-batches and processes.
    """
    count = config.num_tuples
    generator = torch.Generator().manual_seed(seed_of(config.seed, TIMES))
    bins = torch.randperm(count, generator=generator)
    timesteps = timesteps_at(process, (bins + torch.rand(count, generator=generator, dtype=torch.float64)) / count)
    unconditional = torch.rand(count, generator=generator) < config.condition_dropout
    drawn = []
    device = batch.sample.device
    for numbers in torch.arange(process_index(), count, process_count()).split(config.batch_size):
        images = (numbers % len(batch.sample)).to(device)
        sample, at = batch.sample[images], timesteps[numbers].to(device)
        noise = torch.stack([_noise(config.seed, number, sample.shape[1:]) for number in numbers.tolist()])
        noisy = process.add_noise(sample, noise.to(sample), at)
        conditions = dropped(rows(batch.conditions, images), unconditional[numbers].to(device), null)
        drawn.append(Tuples(noisy, at, conditions, tuple(numbers.tolist())))
    return drawn


def _noise(seed: int, number: int, shape: torch.Size) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(seed, NOISE, number)))
