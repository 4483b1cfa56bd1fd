"""Processes: noising, training target and sampler of a model family behind one interface.

A process is independent of the network. Timesteps are always in the network's unit, so that
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

    Processes are compared with `==`, and on disk by `repr`: write your own as a frozen dataclass of its settings.
    """

    @property
    def num_train_timesteps(self) -> int:
        """Number of steps between clean and noise."""
        ...

    def timesteps(self, u: Tensor) -> Tensor:
        """Map u in [0, 1), 0 the clean end, to timesteps of the same shape."""
        ...

    def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy sample x_t, the network's input, in the shape of `sample` (B, ...), or of its latents.

        `noise` has the shape of `sample`, `timesteps` is (B,).
        """
        ...

    def target(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target at (x_t, t), in the shape of `sample`."""
        ...

    def denoised(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        """The clean sample implied by the network's output at (x_t, t), in the shape of `noisy`."""
        ...

    def scheduler(self) -> Any:
        """A new deterministic diffusers sampler for this process."""
        ...

    def sampler_to_model(self, timestep: Tensor) -> Tensor:
        """The sampler's timestep in the network's unit."""
        ...

    def model_to_sampler(self, output: Tensor) -> Tensor:
        """The network's output in the convention of the sampler's `step`."""
        ...


def timesteps_at(process: Process, u: Tensor) -> Tensor:
    """`process.timesteps` of u, which may be float64, as integers or float32."""
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
