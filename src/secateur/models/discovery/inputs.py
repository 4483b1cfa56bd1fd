"""Example inputs of an undeclared class, from the signature of its `forward` and its config.

Names mean the same in almost all of diffusers, so one table of names suffices; the layout of the sample is found by
trying. Special arguments of classes are in `PARTICULAR`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...base.errors import ModelError
from ..family import Size, architecture_of, config_of
from .particular import PARTICULAR
from .request import KNOWN, Request

Layout = Callable[[Request], Any]
SMALL = (4, 6)  # latents

LAYOUTS: dict[str, Layout] = {
    "image": lambda of: of.draw(of.channels, of.height, of.width),
    "video": lambda of: of.draw(of.channels, of.frames, of.height, of.width),
    "frames first": lambda of: of.draw(of.frames, of.channels, of.height, of.width),
    "channels last": lambda of: of.draw(of.frames, of.height, of.width, of.channels),
    "tokens": lambda of: of.draw(of.height * of.width, of.channels),
    "tokens of a video": lambda of: of.draw(of.frames * of.height * of.width, of.channels),
    "sequence": lambda of: of.draw(of.channels, of.width * 4),
}


ALWAYS = (
    "encoder_hidden_states",
    "timestep",
    "pooled_projections",
    "guidance",
    "img_ids",
    "txt_ids",
    "num_frames",
    "height",
    "width",
    "original_size",
    "target_size",
    "crop_coords",
    "img_shapes",
    "global_hidden_states",
    "class_labels",
    "padding_mask",
)


def candidates(model: nn.Module, batch: int = 2, frames: int = 3, size: Size | None = None) -> Iterator[dict[str, Any]]:
    """Keyword arguments that `model` may take, for each layout of the sample; first without optional arguments.

    `size` is the height and width of latents; by default the config's, if the class fixes them, or small ones.

    Raises:
        ModelError: `forward` takes an unknown argument.
    """
    config = config_of(model)
    height, width = size or fixed_size(config) or SMALL
    of = Request(model, config, batch, config.get("video_length", frames), height, width)  # of Latte, which is fixed
    if (particular := PARTICULAR.get(architecture_of(model).__name__)) is not None:
        yield particular(of)
        return
    sample, *others = inspect.signature(model.forward).parameters.values()
    required = [each.name for each in others if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    if unknown := next((name for name in required if name not in KNOWN), None):
        raise ModelError(f"the argument {unknown} of {type(model).__name__} is of unknown meaning")
    optional = [each.name for each in others if each.name in KNOWN and each.name not in required]
    for names in ([name for name in optional if name in ALWAYS], optional):
        given = {name: KNOWN[name](of) for name in (*required, *names)}
        given = {name: value for name, value in given.items() if value is not None}
        for layout in LAYOUTS.values():
            yield {sample.name: layout(of), **given}


def fixed_size(config: Mapping[str, Any]) -> Size | None:
    """Height and width of the latents of a class that has an entry for each, as its position embeddings may demand."""
    height, width = config.get("sample_height"), config.get("sample_width")
    return (height, width) if height and width else None


def working(model: nn.Module, batch: int = 2) -> tuple[dict[str, Any], int]:
    """The first of the `candidates` that `model` runs on, and its index.

    Raises:
        ModelError: none works; the message says why the first one did not.
    """
    reasons = []
    for index, inputs in enumerate(candidates(model, batch)):
        try:
            with torch.no_grad():
                model(**inputs)
            return inputs, index
        except Exception as error:
            lines = (str(error).strip() or repr(error)).splitlines()
            reasons.append(lines[0] if lines[0][-1] != "(" else lines[-1].lstrip(") "))  # after a printed module
    raise ModelError(f"no example inputs of {type(model).__name__} are known to work: {reasons[0]}")
