"""Calling a network, whatever its architecture, and reading its prediction.

Outside a call, a sample is always an image or its latents (B, C, H, W), and time is in the unit of the process.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ..base.errors import ModelError, SecateurError, first_line, is_lost_peer, is_out_of_memory
from .conditions import UNCONDITIONAL, Conditions, arguments
from .precision import dtype_of
from .registry import family_of, network_of


def predict(model: nn.Module, x_BCHW: Tensor, timesteps_B: Tensor, conditions: Conditions = UNCONDITIONAL) -> Tensor:
    """The network's prediction (B, C, H, W) at (x_t, t), in the dtype of x_t.

    For a decoder, x_t are latents and the prediction is the image. In training `model` may be a wrapper around the
    network; then the wrapper is called.

    Raises:
        ModelError: as the family's `arguments` and `prediction`, and as `output_of`.
    """
    family, network = family_of(model), network_of(model)
    if family.call is not None:
        return family.call(model, conditions)
    dtype = dtype_of(network, x_BCHW.dtype)
    x = x_BCHW.to(dtype)
    kwargs = family.arguments(network, x, timesteps_B, arguments(conditions, dtype))
    return family.prediction(output_of(model, kwargs), x).to(x_BCHW.dtype)


def output_of(model: nn.Module, kwargs: Mapping[str, Any]) -> Tensor:
    """The output of `model` for keyword arguments: a bare tensor, the first returned value, or the only one of a dict.

    Raises:
        ModelError: as `calling`; or the model returns a dict of several values.
    """
    as_tuple = "return_dict" in inspect.signature(network_of(model).forward).parameters
    with calling(model):
        output = model(**kwargs, return_dict=False) if as_tuple else model(**kwargs)
    if isinstance(output, Mapping) and not isinstance(output, BaseOutput):  # of diffusers, which is in order
        if len(output) > 1:
            name = type(network_of(model)).__name__
            raise ModelError(f"{name} returns {', '.join(output)}: return the prediction alone, or first in a tuple")
        (output,) = output.values()
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def calling(model: nn.Module) -> Iterator[None]:
    """Turn an error of a call of `model` inside the block into one line that names the model and its folder.

    Raises:
        ModelError: the model raised anything but an out-of-memory error or that of a lost process, as it does where
            values of its config do not fit each other.
    """
    try:
        yield
    except (SecateurError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, RuntimeError) and (is_out_of_memory(error) or is_lost_peer(error)):
            raise
        network = network_of(model)
        name = getattr(network, "loaded_from", type(network).__name__)
        raise ModelError(f"{name} fails when it is called: {type(error).__name__}: {first_line(error)}") from error
