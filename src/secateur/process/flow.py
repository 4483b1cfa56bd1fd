"""Flow matching, in the conventions of diffusers and of SiT."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from ..base.errors import ModelError
from .grid import drawn_from, grid_of, with_steps
from .meaning import Meaning, as_meaning, settings_of

SETTLED = (  # resolved when a model is loaded: a shift by the image size becomes `shift`
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
TOKENS = "_secateur_tokens"  # of an image, if the shift depends on them and on the number of steps
MANY_TOKENS = 4300  # above this, the number of steps does not matter


class EvenFlowMatchEuler(FlowMatchEulerDiscreteScheduler):
    """Euler steps over the levels 1, (N - 1) / N, ..., 1 / N, shifted, as in Flux's pipeline.

    diffusers' own levels end at 1 / 1000, so that the last step does nothing, which matters with four steps.
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
            if (tokens := self.config.get(TOKENS)) is not None:
                self.set_shift(math.exp(empirical_shift(tokens, num_inference_steps)))
        super().set_timesteps(num_inference_steps, device, sigmas, mu, timesteps)


def empirical_shift(tokens: int, num_inference_steps: int) -> float:
    """The exponent of Flux.2's shift: linear in the tokens for 10 and for 200 steps, and linear in the steps in
    between."""
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > MANY_TOKENS:
        return at_200
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190 * (num_inference_steps - 200)


@dataclass(frozen=True)
class Expert:
    """A network for the noise levels from `low` to `high`, beside another for the rest (Wan 2.2).

    `other` returns the other network, which sampling needs; it is called on first use.
    """

    low: float
    high: float
    other: Callable[[], nn.Module] = field(compare=False, repr=False)

    def covers(self, sigma: float) -> bool:
        """Whether the network is trained at this noise level."""
        return self.low <= sigma < self.high or sigma == self.high == 1


def other_expert(process: object) -> nn.Module | None:
    """The other of two networks that take turns in sampling, if there are two."""
    expert = getattr(process, "expert", None)
    return None if expert is None else expert.other()


@dataclass(frozen=True)
class FlowProcess:
    """Rectified flow: x_sigma = (1 - sigma) x0 + sigma noise, sampled by Euler steps.

    `convention` fixes what the network sees and predicts:
    - "diffusers": time 1000 sigma, velocity noise - x0 (Esser et al. 2024);
    - "sit": time 1 - sigma in [0, 1], velocity x0 - noise (Ma et al. 2024, linear path).

    Two processes are equal if noising, prediction and sampling are, even if their configs are written differently.
    Their text also has the number of steps of a distilled model, since its times are drawn accordingly. `expert` is set
    if the network is one of two.
    """

    config: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    convention: Literal["diffusers", "sit"] = "diffusers"
    expert: Expert | None = None
    task: Meaning = field(init=False, repr=False)  # without the number of steps
    meaning: Meaning = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.convention not in ("diffusers", "sit"):
            raise ModelError(f"flow convention {self.convention!r} is unknown; use diffusers or sit")
        if self.num_train_timesteps < 1:
            raise ModelError(f"the scheduler config has {self.num_train_timesteps} training timesteps")
        sampler = self.scheduler()
        settings = settings_of(sampler, SETTLED) | {
            "sampler": type(sampler).__name__,
            "tokens": self.config.get(TOKENS),
        }
        object.__setattr__(self, "task", as_meaning(settings))
        object.__setattr__(self, "meaning", with_steps(self.task, self.config))

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The config of the process to save."""
        convention = {} if self.convention == "diffusers" else {CONVENTION: self.convention}
        return {"_class_name": FlowMatchEulerDiscreteScheduler.__name__, **self.config, **convention}

    @property
    def num_train_timesteps(self) -> int:
        return int(self.config.get("num_train_timesteps", 1000))

    def _sigmas(self, timesteps: Tensor, like: Tensor) -> Tensor:
        sigmas = timesteps / self.num_train_timesteps if self.convention == "diffusers" else 1 - timesteps
        return sigmas.to(like).reshape(-1, *[1] * (like.ndim - 1))

    @cached_property
    def _grid(self) -> Tensor | None:
        grid = grid_of(self)
        if grid is None or self.expert is None:
            return grid
        return grid[[self.expert.covers(each / self.num_train_timesteps) for each in grid.tolist()]]

    def timesteps(self, u: Tensor) -> Tensor:
        if self._grid is not None:
            return drawn_from(self._grid, u)
        sigmas = u if self.expert is None else self.expert.low + u * (self.expert.high - self.expert.low)
        return sigmas * self.num_train_timesteps if self.convention == "diffusers" else 1 - sigmas

    def add_noise(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        sigmas = self._sigmas(timesteps, sample)
        return (1 - sigmas) * sample + sigmas * noise

    def target(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return noise - sample if self.convention == "diffusers" else sample - noise

    def denoised(self, noisy: Tensor, output: Tensor, timesteps: Tensor) -> Tensor:
        return noisy - self._sigmas(timesteps, noisy) * self.model_to_sampler(output)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        # A shift by the image size is resolved when a model is loaded; stochastic steps belong to the sampler.
        euler = EvenFlowMatchEuler if self.config.get(EVEN_LEVELS) else FlowMatchEulerDiscreteScheduler
        return euler.from_config(self.config, use_dynamic_shifting=False, stochastic_sampling=False)

    def sampler_to_model(self, timestep: Tensor) -> Tensor:
        return timestep if self.convention == "diffusers" else 1 - timestep / self.num_train_timesteps

    def model_to_sampler(self, output: Tensor) -> Tensor:
        return output if self.convention == "diffusers" else -output


def _flow_config(config: dict[str, Any]) -> dict[str, Any]:
    """The flow for which a general solver (DPMSolverMultistep, UniPC ...) is configured, as in Sana.

    The solver itself is not part of the process.
    """
    ours = {name: value for name, value in config.items() if name.startswith("_secateur")}
    return {
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
        "shift": config.get("flow_shift", 1.0),
        **ours,
    }
