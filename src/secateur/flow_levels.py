"""Where the noise levels of a flow sampler stand: what pipelines decide by model and image size, not by scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn

from .base.errors import ModelError
from .inputs import input_shape
from .packing import PATCH

EVEN_LEVELS = "secateur_even_levels"  # of a scheduler's config


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


def levels_of(config: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The scheduler's config with what a pipeline of `model` decides by itself about the sampler's noise levels.

    A shift that depends on the size of the image (`use_dynamic_shifting`; Esser et al. 2024, section 5.3.2) becomes
    that of the model's own size; Flux takes even levels.

    Raises:
        ModelError: the numbers of the shift are missing, or give none.
    """
    found = dict(config)
    if config.get("use_dynamic_shifting"):
        try:
            mu = _mu(config, _tokens(model))
            found["shift"] = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        except (TypeError, ArithmeticError) as error:
            raise ModelError(
                "the scheduler config shifts by the image size, and its base_shift, max_shift, base_image_seq_len and "
                "max_image_seq_len do not say how: give numbers, or set use_dynamic_shifting to false"
            ) from error
    return found | ({EVEN_LEVELS: True} if isinstance(model, FluxTransformer2DModel) else {})


def _mu(config: Mapping[str, Any], tokens: int) -> float:
    """Linear in the number of tokens, as `calculate_shift` of diffusers' pipelines."""
    fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - fewest) / (most - fewest)


def _tokens(model: nn.Module) -> int:
    config: Any = model.config
    _, height, width = input_shape(model)
    patch = PATCH if isinstance(model, FluxTransformer2DModel) else config.get("patch_size") or 1
    return (height // patch) * (width // patch)
