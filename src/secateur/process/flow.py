"""Flow matching, in the conventions of diffusers and of SiT."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ..base.errors import ModelError
from .meaning import Meaning, as_meaning, settings_of

SETTLED = (  # when a model is loaded: a shift by the image size has become `shift`
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "time_shift_type",
    "stochastic_sampling",
)
EVEN_LEVELS = "_secateur_even_levels"  # keys of a scheduler's config, which diffusers ignores
CONVENTION = "_secateur_flow_convention"


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

    Two processes are equal if they noise, predict and sample alike, however their configs are written.
    """

    config: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    convention: Literal["diffusers", "sit"] = "diffusers"
    meaning: Meaning = field(init=False)

    def __post_init__(self) -> None:
        if self.convention not in ("diffusers", "sit"):
            raise ModelError(f"flow convention {self.convention!r} is unknown; use diffusers or sit")
        if self.num_train_timesteps < 1:
            raise ModelError(f"the scheduler config has {self.num_train_timesteps} training timesteps")
        sampler = self.scheduler()
        settings = settings_of(sampler, SETTLED) | {"sampler": type(sampler).__name__}
        object.__setattr__(self, "meaning", as_meaning(settings))

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """What stands for the process in a saved folder."""
        convention = {} if self.convention == "diffusers" else {CONVENTION: self.convention}
        return {"_class_name": FlowMatchEulerDiscreteScheduler.__name__, **self.config, **convention}

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


def _flow_config(config: dict[str, Any]) -> dict[str, Any]:
    """The flow that a solver of several kinds of process (DPMSolverMultistep, UniPC ...) is set to, as Sana's is.

    The solver itself is a choice of the sampler.
    """
    return {"num_train_timesteps": config.get("num_train_timesteps", 1000), "shift": config.get("flow_shift", 1.0)}
