"""How a network is called: as diffusers' denoisers are, unless its class is registered with a call of its own.

Outside of a call a sample is always an image or its latents (B, C, H, W), and time is in the unit of the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from diffusers import FluxTransformer2DModel, SanaTransformer2DModel
from torch import Tensor, nn

from ..base.errors import ModelError
from .conditions import UNCONDITIONAL, Conditions, arguments
from .packing import pack, positions, unpack

FLUX_GUIDANCE = 3.5  # what a guidance-distilled Flux is told: the default of diffusers' pipeline


def predict(model: nn.Module, x_BCHW: Tensor, timesteps_B: Tensor, conditions: Conditions = UNCONDITIONAL) -> Tensor:
    """The network's prediction (B, C, H, W) at (x_t, t), in the dtype of x_t, whatever the network's own is.

    A decoder's x_t are latents, and its prediction is the image.

    Raises:
        ModelError: as `call`.
    """
    weights = next(model.parameters(), x_BCHW)
    chosen = call.dispatch(type(network_of(model)))
    return chosen(model, x_BCHW.to(weights.dtype), timesteps_B, arguments(conditions, weights.dtype)).to(x_BCHW.dtype)


@singledispatch
def call(model: nn.Module, x_BCHW: Tensor, timesteps_B: Tensor, told: Mapping[str, Any]) -> Tensor:
    """The network's prediction (B, C, H, W); `told` are the keyword arguments for its conditions.

    The half that learns the variance is dropped. A class that takes anything else is registered by
    `@call.register(Mine)`; in training `model` may be a wrapper around it, and `network_of(model)` has its attributes.

    Raises:
        ModelError: a network that does not predict as many channels as it takes, or twice as many.
    """
    return _denoised_half(model(x_BCHW, timestep=timesteps_B, return_dict=False, **told)[0], x_BCHW.shape[1])


@call.register(FluxTransformer2DModel)
def _call_flux(model: nn.Module, x_BCHW: Tensor, timesteps_B: Tensor, told: Mapping[str, Any]) -> Tensor:
    arguments = flux_arguments(network_of(model), x_BCHW, timesteps_B, told)
    tokens_BNC = model(**arguments, return_dict=False)[0]
    return _denoised_half(unpack(tokens_BNC, (x_BCHW.shape[2], x_BCHW.shape[3])), x_BCHW.shape[1])


@call.register(SanaTransformer2DModel)
def _call_sana(model: nn.Module, x_BCHW: Tensor, timesteps_B: Tensor, told: Mapping[str, Any]) -> Tensor:
    config: Any = network_of(model).config
    if config.guidance_embeds:
        raise ModelError("a Sana with guidance_embeds (Sprint) is trained on another process; this is not supported")
    scaled = timesteps_B * config.timestep_scale
    return _denoised_half(model(x_BCHW, timestep=scaled, return_dict=False, **told)[0], x_BCHW.shape[1])


def flux_arguments(network: nn.Module, x_BCHW: Tensor, timesteps_B: Tensor, told: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of Flux's `forward`: packed latents, where tokens stand, time in [0, 1], and guidance.

    A model that was distilled from a guided one (FLUX.1-dev) is told `FLUX_GUIDANCE`, unless `told` has another.
    """
    config: Any = network.config
    states_BNC = told["encoder_hidden_states"]
    distilled = {"guidance": torch.full_like(timesteps_B, FLUX_GUIDANCE, dtype=torch.float32)}
    return {
        "hidden_states": pack(x_BCHW),
        "timestep": timesteps_B / 1000,
        "img_ids": positions((x_BCHW.shape[2], x_BCHW.shape[3]), x_BCHW.device),
        "txt_ids": torch.zeros(states_BNC.shape[1], 3, dtype=torch.int64, device=x_BCHW.device),
        **(distilled if config.guidance_embeds else {}),
        **told,
    }


def network_of(model: nn.Module) -> nn.Module:
    """The network inside of what accelerate or torch.compile wrapped around it."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def _denoised_half(output_BCHW: Tensor, channels: int) -> Tensor:
    if output_BCHW.shape[1] not in (channels, 2 * channels):
        found = output_BCHW.shape[1]
        raise ModelError(f"the model takes {channels} channels and predicts {found}; this is not supported")
    return output_BCHW[:, :channels]
