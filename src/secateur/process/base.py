"""Processes: noising, training target and sampler of a model family behind one interface.

A process knows nothing about the network. Timesteps are always in the unit that the network takes, so that
`predict(model, process.add_noise(x0, noise, t), t)` is comparable with `process.target(x0, noise, t)`.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..models.conditions import UNCONDITIONAL, Conditions
from ..models.predict import predict
from .own import OwnObjective


@runtime_checkable
class Process(Protocol):
    """What criteria, objectives and samplers need to know about a diffusion or flow process.

    Processes are told apart by `==`, and on disk by `repr`: make one of your own a frozen dataclass of its settings.
    """

    @property
    def num_train_timesteps(self) -> int:
        """Number of steps between clean and noise."""
        ...

    def timesteps(self, u: Tensor) -> Tensor:
        """Map u in [0, 1), 0 the clean end, to timesteps of the same shape."""
        ...

    def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy sample x_t, what the network takes: of the shape of `sample` (B, ...), or its latents' own.

        `noise` has the shape of `sample`, `timesteps` is (B,).
        """
        ...

    def target(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should output at (x_t, t), the shape of `sample`."""
        ...

    def denoised(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        """The clean sample that the network's output at (x_t, t) stands for, the shape of `noisy`."""
        ...

    def scheduler(self) -> Any:
        """A fresh deterministic diffusers sampler for this process."""
        ...

    def sampler_to_model(self, timestep: Tensor) -> Tensor:
        """The sampler's timestep in the unit that the network takes."""
        ...

    def model_to_sampler(self, output: Tensor) -> Tensor:
        """The network's output in the convention that the sampler's `step` takes."""
        ...


def timesteps_at(process: Process, u: Tensor) -> Tensor:
    """`process.timesteps` of u, which may be float64, as the integers or float32 that networks take."""
    timesteps = process.timesteps(u)
    return timesteps.float() if timesteps.is_floating_point() else timesteps


def denoising_error(
    model: nn.Module,
    process: Process,
    x0_BCHW: Tensor,
    noise_BCHW: Tensor,
    timesteps_B: Tensor,
    conditions: Conditions = UNCONDITIONAL,
) -> Tensor:
    """Mean squared error of each sample's prediction, (B,): L_simple (DDPM, eq. 14) or its flow counterpart."""
    if isinstance(process, OwnObjective):
        return process.errors(model, conditions)
    x_t = process.add_noise(x0_BCHW, noise_BCHW, timesteps_B)
    target = process.target(x0_BCHW, noise_BCHW, timesteps_B)
    return (predict(model, x_t, timesteps_B, conditions) - target).square().flatten(1).mean(1)
