"""How a network is called: as diffusers' denoisers are, unless its class is registered with a call of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

from torch import Tensor, nn

from .errors import ModelError


@singledispatch
def call(model: nn.Module, x_BCHW: Tensor, timesteps_B: Tensor, told: Mapping[str, Any]) -> Tensor:
    """The network's prediction (B, C, H, W); `told` are the keyword arguments for its conditions.

    The half that learns the variance is dropped.

    Raises:
        ModelError: a network that does not predict as many channels as it takes, or twice as many.
    """
    channels = x_BCHW.shape[1]
    output = model(x_BCHW, timestep=timesteps_B, return_dict=False, **told)[0]
    if output.shape[1] not in (channels, 2 * channels):
        raise ModelError(f"the model takes {channels} channels and predicts {output.shape[1]}; this is not supported")
    return output[:, :channels]
