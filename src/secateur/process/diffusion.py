"""Discrete diffusion: noise prediction, v or the sample itself, on a schedule of betas."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from ..base.errors import ModelError
from .grid import drawn_from, grid_of, with_steps
from .meaning import Meaning, as_meaning, digest_of, settings_of

BETAS = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "rescale_betas_zero_snr")
MOST_NOISE = 1e-8  # signal-to-noise ratio below which a clean sample cannot be recovered


@dataclass(frozen=True)
class DiffusionProcess:
    """Discrete variance-preserving diffusion (DDPM, Ho et al. 2020, eq. 4), sampled by DDIM with eta 0.

    Targets follow the scheduler's `prediction_type`: epsilon, sample, or v (Salimans & Ho 2022, appendix D). Two
    processes are equal if noising, prediction and sampling are, even if their configs are written differently. Their
    text also has the number of steps of a distilled model, since its times are drawn accordingly.
    """

    config: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    task: Meaning = field(init=False, repr=False)  # without the number of steps
    meaning: Meaning = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_scheduler", DDPMScheduler.from_config(self.config))
        if self.num_train_timesteps < 1:
            raise ModelError(f"the scheduler config has {self.num_train_timesteps} training timesteps")
        if self.prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ModelError(
                f"prediction type {self.prediction_type!r} is unknown; use epsilon, sample or v_prediction"
            )
        sampler = self.scheduler()
        settings = settings_of(sampler, BETAS) | {"alphas_cumprod": digest_of(sampler.alphas_cumprod)}
        object.__setattr__(self, "task", as_meaning(settings))
        object.__setattr__(self, "meaning", with_steps(self.task, self.config))

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The config of the process to save."""
        return {"_class_name": DDPMScheduler.__name__, **self.config}

    @property
    def prediction_type(self) -> str:
        return self._scheduler.config.prediction_type  # type: ignore[attr-defined]

    @property
    def num_train_timesteps(self) -> int:
        return self._scheduler.config.num_train_timesteps  # type: ignore[attr-defined]

    @cached_property
    def _grid(self) -> Tensor | None:
        return grid_of(self)

    def timesteps(self, u: Tensor) -> Tensor:
        if self._grid is not None:
            return drawn_from(self._grid, u)
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
