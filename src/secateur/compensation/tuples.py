"""Calibration tuples: images with a timestep, noise and conditions, the same for both models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base.distributed import process_count, process_index
from ..base.seeds import Purpose, normal, permutation, uniform
from ..data import Batch
from ..models.conditions import UNCONDITIONAL, Conditions, dropped, rows
from ..models.predict import predict
from ..process.base import Process, timesteps_at
from .config import CompensationConfig

WITHIN, DROPOUT, NOISE, POSITIONS = range(1, 5)  # parts of the random stream; the order of the bins is part 0


@dataclass(frozen=True)
class Tuples:
    """A micro-batch: x_t (B, C, H, W), timesteps (B,) in the network's unit, and the number of each tuple."""

    noisy: Tensor
    timesteps: Tensor
    conditions: Conditions
    numbers: tuple[int, ...]

    def run(self, model: nn.Module) -> Callable[[], Tensor]:
        """A function that calls `model` on these tuples."""
        return lambda: predict(model, self.noisy, self.timesteps, self.conditions)


def draw_tuples(
    process: Process, batch: Batch, config: CompensationConfig, null: Conditions = UNCONDITIONAL
) -> list[Tuples]:
    """This process's share of `config.num_tuples`, in micro-batches.

    Timesteps are spread over the whole range: a random one in each of `num_tuples` bins, in random order. A tuple's
    draws depend on its number and `config.seed` alone, not on micro-batches and processes.
    """
    count = config.num_tuples
    bins = permutation(count, config.seed, Purpose.COMPENSATION)
    within, dropout = (uniform(count, config.seed, Purpose.COMPENSATION, part=part) for part in (WITHIN, DROPOUT))
    timesteps = timesteps_at(process, (bins + within.double()) / count)
    unconditional = dropout < config.condition_dropout
    drawn = []
    device = batch.sample.device
    for numbers in torch.arange(process_index(), count, process_count()).split(config.batch_size):
        images = (numbers % len(batch.sample)).to(device)
        sample, at = batch.sample[images], timesteps[numbers].to(device)
        noise = normal(sample.shape[1:], numbers.tolist(), config.seed, Purpose.COMPENSATION, part=NOISE)
        noisy = process.add_noise(sample, noise.to(sample), at)
        conditions = dropped(rows(batch.conditions, images), unconditional[numbers].to(device), null)
        drawn.append(Tuples(noisy, at, conditions, tuple(numbers.tolist())))
    return drawn
