"""Noise levels of a flow sampler, as far as pipelines choose them by model and image size instead of by scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..base.errors import ModelError
from ..models.network import input_shape
from ..models.registry import family_of
from ..process.base import Process
from ..process.flow import EVEN_LEVELS, TOKENS
from ..process.from_config import process_from_config
from ..process.grid import STEPS
from ..process.named import ProcessLike, config_of, is_process

UNCLIPPED = {"clip_sample": False, "thresholding": False}  # samplers clip to [-1, 1], which latents exceed


def process_of(process: ProcessLike, model: nn.Module, latent: bool) -> Process:
    """The process that `process` means, with the sampler settings of a pipeline of `model`; `latent` if it works on
    latents.

    Raises:
        ModelError: as `process_from_config` and `levels_of`.
    """
    if is_process(process):
        return process
    config = levels_of(config_of(process) or {}, model)
    clips = not str(config.get("_class_name")).startswith("FlowMatch")  # which would warn of settings it does not know
    return process_from_config(config | (UNCLIPPED if latent and clips else {}))


def levels_of(config: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The scheduler's config with the changes to noise levels that a pipeline of `model` makes.

    A shift that depends on the size of the image (`use_dynamic_shifting`; Esser et al. 2024, section 5.3.2) becomes
    that of the model's own size; some pipelines use even levels, or also shift by the number of steps. A
    guidance-distilled model was trained at the times of its pipeline.

    Raises:
        ModelError: numbers for the shift are missing or invalid.
    """
    found, family = dict(config), family_of(model)
    if config.get("use_dynamic_shifting") and family.shift_by_steps:
        found[TOKENS] = _tokens(model)
    elif config.get("use_dynamic_shifting"):
        try:
            mu = _mu(config, _tokens(model))
            found["shift"] = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
        except (TypeError, ArithmeticError) as error:
            raise ModelError(
                "the scheduler config shifts by the image size, and its base_shift, max_shift, base_image_seq_len and "
                "max_image_seq_len do not say how: give numbers, or set use_dynamic_shifting to false"
            ) from error
    if family.sampled_in is not None and getattr(model, "config", {}).get("guidance_embeds"):
        found.setdefault(STEPS, family.sampled_in)
    return found | ({EVEN_LEVELS: True} if family.even_levels else {})


def _mu(config: Mapping[str, Any], tokens: int) -> float:
    """Linear in the number of tokens, as `calculate_shift` of diffusers' pipelines."""
    fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - fewest) / (most - fewest)


def _tokens(model: nn.Module) -> int:
    *_, height, width = input_shape(model)
    patch = family_of(model).patch_size(model)
    return (height // patch) * (width // patch)
