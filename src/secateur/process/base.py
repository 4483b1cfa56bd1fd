"""Processes: noising, training target and sampler of a model family behind one interface.

A process knows nothing about the network. Timesteps are always in the unit that the network takes, so that
`predict(model, process.add_noise(x0, noise, t), t)` is comparable with `process.target(x0, noise, t)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ..base.errors import ModelError, first_line
from ..models.conditions import UNCONDITIONAL, Conditions
from ..models.predict import predict

EVEN_LEVELS = "secateur_even_levels"  # of a scheduler's config
MOST_NOISE = 1e-8  # signal-to-noise ratio below which nothing of a clean sample can be told


class Process(Protocol):
    """What criteria, objectives and samplers need to know about a diffusion or flow process."""

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


@dataclass(frozen=True)
class DiffusionProcess:
    """Discrete variance-preserving diffusion (DDPM, Ho et al. 2020, eq. 4), sampled by DDIM with eta 0.

    Targets follow the scheduler's `prediction_type`: epsilon, sample, or v (Salimans & Ho 2022, appendix D).
    """

    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scheduler", DDPMScheduler.from_config(self.config))
        if self.num_train_timesteps < 1:
            raise ModelError(f"the scheduler config has {self.num_train_timesteps} training timesteps")
        if self.prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ModelError(
                f"prediction type {self.prediction_type!r} is unknown; use epsilon, sample or v_prediction"
            )

    @property
    def prediction_type(self) -> str:
        return self._scheduler.config.prediction_type  # type: ignore[attr-defined]

    @property
    def num_train_timesteps(self) -> int:
        return self._scheduler.config.num_train_timesteps  # type: ignore[attr-defined]

    def timesteps(self, u: Tensor) -> Tensor:
        return (u * self.num_train_timesteps).long()

    def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return self._scheduler.add_noise(sample, noise, timesteps)  # type: ignore[attr-defined]

    def target(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return sample
        return self._scheduler.get_velocity(sample, noise, timesteps)  # type: ignore[attr-defined]

    def denoised(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        if self.prediction_type == "sample":
            return output
        kept = self._scheduler.alphas_cumprod.to(noisy)[timesteps].clamp_min(MOST_NOISE)  # type: ignore[attr-defined]
        signal, noise = (root.sqrt().reshape(-1, *[1] * (noisy.ndim - 1)) for root in (kept, 1 - kept))
        if self.prediction_type == "epsilon":
            return (noisy - noise * output) / signal
        return signal * noisy - noise * output

    def scheduler(self) -> DDIMScheduler:
        return DDIMScheduler.from_config(self._scheduler.config)  # type: ignore[attr-defined]

    def sampler_to_model(self, timestep: Tensor) -> Tensor:
        return timestep

    def model_to_sampler(self, output: Tensor) -> Tensor:
        return output


class EvenFlowMatchEuler(FlowMatchEulerDiscreteScheduler):
    """Euler steps over the levels 1, (N - 1) / N, ..., 1 / N, shifted, as Flux's pipeline takes them.

    diffusers' own end at 1 / 1000, which leaves nothing to the last step: much, of four.
    """

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        timesteps: Any = None,
    ) -> None:
        if num_inference_steps is not None and sigmas is None and timesteps is None:
            sigmas = np.linspace(1, 1 / num_inference_steps, num_inference_steps)
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)


@dataclass(frozen=True)
class FlowProcess:
    """Rectified flow: x_sigma = (1 - sigma) x0 + sigma noise, sampled by Euler steps.

    `convention` fixes what the network sees and predicts:
    - "diffusers": time 1000 sigma, velocity noise - x0 (Esser et al. 2024);
    - "sit": time 1 - sigma in [0, 1], velocity x0 - noise (Ma et al. 2024, linear path).
    """

    config: dict[str, Any] = field(default_factory=dict)
    convention: Literal["diffusers", "sit"] = "diffusers"

    def __post_init__(self) -> None:
        if self.convention not in ("diffusers", "sit"):
            raise ModelError(f"flow convention {self.convention!r} is unknown; use diffusers or sit")
        if self.num_train_timesteps < 1:
            raise ModelError(f"the scheduler config has {self.num_train_timesteps} training timesteps")

    @property
    def num_train_timesteps(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def _sigmas(self, timesteps: Tensor, like: Tensor) -> Tensor:
        sigmas = timesteps / self.num_train_timesteps if self.convention == "diffusers" else 1 - timesteps
        return sigmas.to(like).reshape(-1, *[1] * (like.ndim - 1))

    def timesteps(self, u: Tensor) -> Tensor:
        return u * self.num_train_timesteps if self.convention == "diffusers" else 1 - u

    def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigmas = self._sigmas(timesteps, sample)
        return (1 - sigmas) * sample + sigmas * noise

    def target(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - sample if self.convention == "diffusers" else sample - noise

    def denoised(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        return noisy - self._sigmas(timesteps, noisy) * self.model_to_sampler(output)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        # A shift by the image size is settled when a model is loaded; stochastic steps are another sampler's choice.
        euler = EvenFlowMatchEuler if self.config.get(EVEN_LEVELS) else FlowMatchEulerDiscreteScheduler
        return euler.from_config(self.config, use_dynamic_shifting=False, stochastic_sampling=False)

    def sampler_to_model(self, timestep: Tensor) -> Tensor:
        return timestep if self.convention == "diffusers" else 1 - timestep / self.num_train_timesteps

    def model_to_sampler(self, output: Tensor) -> Tensor:
        return output if self.convention == "diffusers" else -output


def process_from_config(config: dict[str, Any]) -> Process:
    """The process that a diffusers `scheduler_config.json` describes.

    The key `secateur_flow_convention`, which diffusers ignores, names the convention of a flow model.

    Raises:
        ModelError: the scheduler belongs to neither family, or its class is not named.
    """
    name = str(config.get("_class_name"))
    try:
        if name.startswith("FlowMatch"):
            return _tried(FlowProcess(config, config.get("secateur_flow_convention", "diffusers")))
        if config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction":
            return _tried(FlowProcess(_flow_config(config)))
        if "beta_schedule" in config or "beta_start" in config or name in ("DDPMScheduler", "DDIMScheduler"):
            return _tried(DiffusionProcess(config))
    except (NotImplementedError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ModelError(f"the scheduler config cannot be used: {first_line(error)}") from error
    raise ModelError(
        f"scheduler {name} is not supported; use one with a beta schedule (DDPM, DDIM ...), a FlowMatch one, or one "
        "with use_flow_sigmas"
    )


def _flow_config(config: dict[str, Any]) -> dict[str, Any]:
    """The flow that a solver of several kinds of process (DPMSolverMultistep, UniPC ...) is set to, as Sana's is.

    The solver itself is a choice of the sampler.
    """
    return {"num_train_timesteps": config.get("num_train_timesteps", 1000), "shift": config.get("flow_shift", 1.0)}


def _tried(process: Process) -> Process:
    """The process, after one use of everything that its config decides."""
    sample, timesteps = torch.zeros(2, 1), process.timesteps(torch.tensor([0.0, 0.99]))
    process.target(sample, process.add_noise(sample, sample, timesteps), timesteps)
    process.scheduler().set_timesteps(1)
    return process


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
    x_t = process.add_noise(x0_BCHW, noise_BCHW, timesteps_B)
    target = process.target(x0_BCHW, noise_BCHW, timesteps_B)
    return (predict(model, x_t, timesteps_B, conditions) - target).square().flatten(1).mean(1)
