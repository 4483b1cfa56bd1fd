"""What a diffusers network takes: its input shape, its classes, and example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Shape (C, H, W) of one sample, by the model's config.

    Raises:
        ModelError: the config does not say.
    """
    config: Any = model.config
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
    if (kind := config.get("class_embed_type")) is not None:
        raise ModelError(f"{type(model).__name__} takes labels by class_embed_type={kind!r}, which is not supported")
    return config.get("num_class_embeds") or config.get("num_embeds_ada_norm")


def null_class(model: nn.Module) -> int | None:
    """The label that stands for no class: the last embedding of a DiT (Peebles & Xie 2023, section 3.1)."""
    config: Any = model.config
    return config.get("num_embeds_ada_norm")


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Tensor]:
    """Keyword arguments for `model(**inputs)`: a noisy sample (B, C, H, W), timestep (B,) and class_labels (B,).

    Raises:
        ModelError: as `input_shape`.
    """
    first = next(iter(inspect.signature(model.forward).parameters))  # `sample` or `hidden_states`
    noise = torch.randn(batch_size, *input_shape(model), generator=torch.Generator().manual_seed(0))
    inputs = {first: noise, "timestep": torch.ones(batch_size, dtype=torch.int64)}
    classes = class_count(model)
    if classes is not None:
        inputs["class_labels"] = torch.arange(batch_size) % classes
    parameter = next(model.parameters())
    inputs[first] = inputs[first].to(parameter.dtype)
    return {name: value.to(parameter.device) for name, value in inputs.items()}


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
