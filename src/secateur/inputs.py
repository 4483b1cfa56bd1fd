"""What a diffusers network takes: its input shape, its classes, and example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .errors import ModelError
from .example_conditions import example_conditions

FLUX_SAMPLE_SIZE = 128  # of the latents of 1024 pixels; Flux has no size of its own


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Shape (C, H, W) of one sample, by the model's config. Flux's is that of its latents before they are packed.

    Raises:
        ModelError: the config does not say.
    """
    config: Any = model.config
    if isinstance(model, FluxTransformer2DModel):
        return config["in_channels"] // 4, FLUX_SAMPLE_SIZE, FLUX_SAMPLE_SIZE
    size = config.get("sample_size")
    if size is None:
        raise ModelError(f"the config of {type(model).__name__} has no sample_size; set it to the image size")
    height, width = (size, size) if isinstance(size, int) else size
    return config["in_channels"], height, width


def class_count(model: nn.Module) -> int | None:
    """Number of classes of a class-conditional model; None for an unconditional one.

    Raises:
        ModelError: labels that are not class indices.
    """
    config: Any = model.config
    if "class_labels" not in inspect.signature(model.forward).parameters:  # PixArt keeps DiT's entries in its config
        return None
    if (kind := config.get("class_embed_type")) is not None:
        raise ModelError(f"{type(model).__name__} takes labels by class_embed_type={kind!r}, which is not supported")
    return config.get("num_class_embeds") or config.get("num_embeds_ada_norm")


def null_class(model: nn.Module) -> int | None:
    """The label that stands for no class: the last embedding of a DiT (Peebles & Xie 2023, section 3.1)."""
    config: Any = model.config
    return None if class_count(model) is None else config.get("num_embeds_ada_norm")


def example_inputs(model: nn.Module, batch_size: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Random keyword arguments for `model(**inputs)`, the same ones at every call, batch axes first.

    A noisy sample (B, C, H, W), timestep (B,) and, where the architecture takes them, class_labels (B,), text states,
    pooled text, sizes and positions. `size` is the height and width of the sample, by default the config's.

    Raises:
        ModelError: as `input_shape`, and labels that are not class indices.
    """
    generator = torch.Generator().manual_seed(0)
    parameter = next(model.parameters())
    channels, height, width = input_shape(model)
    sample = torch.randn(batch_size, channels, *(size or (height, width)), generator=generator)
    parameters = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {next(iter(parameters)): sample}  # `sample` or `hidden_states`
    if "timestep" in parameters:
        inputs["timestep"] = torch.ones(batch_size, dtype=torch.int64)
    conditions = example_conditions(model, sample, lambda *sizes: torch.randn(batch_size, *sizes, generator=generator))
    if not conditions and (classes := class_count(model)) is not None:
        inputs["class_labels"] = torch.arange(batch_size) % classes
    return tree_map_only(Tensor, partial(_like, parameter), inputs | conditions)


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` on the device of `parameter` and, if it has a fraction, in its dtype."""
    return value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)


def takes_text(model: nn.Module) -> bool:
    """Whether the network attends to text."""
    return "encoder_hidden_states" in inspect.signature(model.forward).parameters


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block; the model's mode is restored after it."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
