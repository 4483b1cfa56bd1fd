"""What a diffusers network takes: its input shape, its classes, and example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, singledispatch
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..base.errors import ModelError
from .conditions import LABELS, Conditions, arguments
from .decoder import AutoencoderKLDecoder
from .examples import example_conditions
from .packing import PATCH
from .predict import flux_arguments

FLUX_SAMPLE_SIZE = 128  # of the latents of 1024 pixels, where the config does not say


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


@singledispatch
def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Shape (C, H, W) of one sample, by the model's config.

    Flux's is that of its latents before they are packed, a decoder's that of an image. A class whose config spells it
    differently is registered by `@input_shape.register(Mine)`.

    Raises:
        ModelError: the config does not say, or says a size that Flux cannot pack.
    """
    config: Any = model.config
    if config.get("sample_size") is None:
        raise ModelError(f"the config of {type(model).__name__} has no sample_size; set it to the image size")
    return config["in_channels"], *_sides(config["sample_size"])


@input_shape.register(FluxTransformer2DModel)
def _flux_shape(model: nn.Module) -> tuple[int, int, int]:
    config: Any = model.config
    height, width = _sides(config.get("sample_size") or FLUX_SAMPLE_SIZE)
    if height % PATCH or width % PATCH:
        raise ModelError(f"the config's sample_size is {config['sample_size']}; Flux takes latents of an even size")
    return config["in_channels"] // PATCH**2, height, width


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


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


def example_batch(model: nn.Module, batch_size: int, size: tuple[int, int] | None = None) -> tuple[Tensor, Conditions]:
    """A random noisy sample (B, C, H, W) and what the architecture is told with it, the same at every call.

    `size` is the height and width of the sample, by default the config's.

    Raises:
        ModelError: as `input_shape`, and labels that are not class indices.
    """
    generator = torch.Generator().manual_seed(0)
    channels, height, width = input_shape(model)
    sample = torch.randn(batch_size, channels, *(size or (height, width)), generator=generator)
    told = example_conditions(model, batch_size, lambda *sizes: torch.randn(batch_size, *sizes, generator=generator))
    if not told and (classes := class_count(model)) is not None:
        told = {LABELS: torch.arange(batch_size) % classes}
    return tree_map_only(Tensor, partial(_like, next(model.parameters())), (sample, told))


@singledispatch
def example_inputs(model: nn.Module, batch_size: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Random keyword arguments for `model(**inputs)`, the same ones at every call, batch axes first.

    A noisy sample, or the latents of one for a decoder; timestep (B,) and, where the architecture takes them,
    class_labels (B,), text states, pooled text, sizes and positions. `size` is the height and width of the sample, by
    default the config's. A class with a `call` of its own is registered here too.

    Raises:
        ModelError: as `example_batch`.
    """
    sample, conditions = example_batch(model, batch_size, size)
    parameters = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {next(iter(parameters)): sample}  # `sample` or `hidden_states`
    if "timestep" in parameters:
        inputs["timestep"] = torch.ones(batch_size, dtype=torch.int64, device=sample.device)
    return inputs | arguments(conditions, sample.dtype)


@example_inputs.register(FluxTransformer2DModel)
def _flux_inputs(model: nn.Module, batch_size: int, size: tuple[int, int] | None = None) -> dict[str, Any]:
    sample, conditions = example_batch(model, batch_size, size)
    timesteps = torch.linspace(100, 900, batch_size, device=sample.device)
    inputs = flux_arguments(model, sample, timesteps, arguments(conditions, sample.dtype))
    return tree_map_only(Tensor, partial(_like, sample), inputs)


@example_inputs.register
def _decoder_inputs(
    model: AutoencoderKLDecoder, batch_size: int, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    shape = model.latent_shape(*(size or input_shape(model)[1:]))
    latents = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
    return {"sample": _like(next(model.parameters()), latents)}


def _like(other: Tensor, value: Tensor) -> Tensor:
    """`value` on the device of `other` and, if it has a fraction, in its dtype."""
    return value.to(other.device, other.dtype if value.is_floating_point() else value.dtype)


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
