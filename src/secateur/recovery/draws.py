"""All randomness of a training step, as a pure function of seed and step.

Noise and dropout masks are drawn by an image's position in the batch, everything else for the whole batch. So a step
does not depend on how many processes or micro-batches share its batch, and a resumed run needs no generator state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..base.seeds import Purpose, normal, permutation, uniform
from ..data import ImageDataset
from ..models.conditions import UNCONDITIONAL, Conditions, dropped, without_labels
from ..process.base import Process
from ..teacher.draw import Draw, mirrored
from .config import RecoveryConfig

TIMES, FLIPS, DROPPED = range(3)  # parts of a step's stream


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> Tensor:
    return permutation(length, seed, Purpose.EPOCH, step=epoch)


def batch_indices(seed: int, step: int, batch_size: int, length: int) -> Tensor:
    """Indices (batch_size,) of batch `step` in an endless sequence of shuffled epochs over `length` images."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = positions // length
    return torch.cat(
        [
            _permutation(seed, epoch, length)[positions[epochs == epoch] % length]
            for epoch in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]
    )


def uniform_times(config: RecoveryConfig, step: int) -> Tensor:
    """u in [0, 1), (batch_size,); antithetic draws come in pairs u, 1 - u, as in DDIM's released code."""
    if config.timestep_sampling == "uniform":
        return _uniform(config, step, TIMES)
    u = _uniform(config, step, TIMES)[: (config.batch_size + 1) // 2]
    mirrored = 1 - 2**-24 - u  # u is a multiple of 2^-24, so this stays in [0, 1)
    return torch.stack([u, mirrored], dim=1).flatten()[: config.batch_size]


def _uniform(config: RecoveryConfig, step: int, part: int) -> Tensor:
    return uniform(config.batch_size, config.seed, Purpose.STEP, step=step, part=part)


def draw_step(
    dataset: ImageDataset,
    process: Process,
    config: RecoveryConfig,
    step: int,
    null: Conditions = UNCONDITIONAL,
    accepts: Callable[[Conditions], Conditions] = without_labels,
    rank: int = 0,
    processes: int = 1,
) -> list[Draw]:
    """The `config.accumulation` micro-batches of process `rank` in step `step`.

    `accepts` selects the conditions that the model takes; `null` replaces the dropped ones.
    """
    indices = batch_indices(config.seed, step, config.batch_size, len(dataset))
    flipped = _uniform(config, step, FLIPS) < (0.5 if config.horizontal_flip else 0.0)
    unconditional = _uniform(config, step, DROPPED) < config.label_dropout
    timesteps = process.timesteps(uniform_times(config, step))

    def noise(places: range, part: int) -> Tensor:
        return normal(dataset.shape, places, config.seed, Purpose.NOISE, step=step, part=part)

    size = config.batch_size // (config.accumulation * processes)
    draws = []
    for micro in range(config.accumulation):
        start = (micro * processes + rank) * size
        places, share = range(start, start + size), slice(start, start + size)
        batch = dataset.batch(indices[share].tolist())
        draws.append(
            Draw(
                sample=mirrored(batch.sample, flipped[share]),
                noise=noise(places, 0),
                timesteps=timesteps[share],
                conditions=dropped(accepts(batch.conditions), unconditional[share], null),
                normal=partial(noise, places),
            )
        )
    return draws
