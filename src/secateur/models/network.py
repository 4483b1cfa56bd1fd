"""Inputs of a network: its sample shape, its classes, and example inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from ..base.errors import ModelError
from ..structure.known_values import KnownValues, placed_like
from .conditions import LABELS, Conditions, arguments
from .family import Shape, Size
from .precision import dtype_of
from .registry import family_of

IMAGE_CHANNELS = (1, 3)  # of grey and RGB images; other samples are latents
TEXTS = ("encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_mask", "attention_mask")


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


def as_network(model: nn.Module) -> nn.Module:
    """The network to prune in a loaded `model`: the decoder of an `AutoencoderKL`, otherwise the model itself."""
    return family_of(model).network(model)


def input_shape(model: nn.Module) -> Shape:
    """Shape (C, H, W) of one sample: an image, latents as encoded by the autoencoder, or the output of a decoder.

    Raises:
        ModelError: the config does not say, or there is none.
    """
    return family_of(model).input_shape(model)


def class_count(model: nn.Module) -> int | None:
    """Number of classes of a class-conditional model; None for an unconditional one.

    Raises:
        ModelError: labels that are not class indices.
    """
    labels = family_of(model).labels(model)
    return None if labels is None else labels.classes


def null_class(model: nn.Module) -> int | None:
    """The label for "no class", the last embedding of a DiT (Peebles & Xie 2023, section 3.1)."""
    labels = family_of(model).labels(model)
    return labels.classes if labels is not None and labels.null else None


def example_batch(model: nn.Module, batch_size: int, size: Size | None = None) -> tuple[Tensor, Conditions]:
    """A random noisy sample (B, C, H, W) and the conditions that the architecture takes, the same at every call.

    For a decoder the sample consists of latents. `size` is the height and width of the sample, for a decoder of the
    image; by default the config's.

    Raises:
        ModelError: as `input_shape`, and labels that are not class indices.
    """
    family = family_of(model)
    generator = torch.Generator().manual_seed(0)
    like = torch.empty(0, dtype=dtype_of(model), device=device_of(model))

    def draw(*sizes: int) -> Tensor:
        if like.is_meta:
            return like.new_empty(batch_size, *sizes)
        return torch.randn(batch_size, *sizes, generator=generator)

    if family.taken_shape is not None:
        height, width = size or family.input_shape(model)[-2:]
        shape = family.taken_shape(model, (height, width))
    else:
        own_shape = family.input_shape(model)
        shape = own_shape if size is None else (*own_shape[: -len(size)], *size)
    sample, conditions = draw(*shape), family.conditions(model, batch_size, draw)
    if not conditions and (classes := class_count(model)) is not None:
        conditions = {LABELS: torch.arange(batch_size) % classes}
    return tree_map_only(Tensor, partial(placed_like, like), (sample, conditions))


def example_inputs(
    model: nn.Module, batch_size: int, size: Size | None = None, text_tokens: int | None = None
) -> dict[str, Any]:
    """Random keyword arguments for `model(**inputs)`, the same ones at every call, batch axes first.

    A noisy sample, or latents for a decoder; timestep (B,) and, as the architecture requires, class_labels (B,), text
    states, pooled text, sizes and positions. `size` is as in `example_batch`; `text_tokens` is
    the length of the text, by default that of diffusers' pipelines.

    Raises:
        ModelError: as `example_batch`, and a length of text where it cannot be chosen.
    """
    with _disable_current_modes():  # inside a fake mode these must still have values
        return _example_inputs(model, batch_size, size, text_tokens)


def _example_inputs(model: nn.Module, batch_size: int, size: Size | None, text_tokens: int | None) -> dict[str, Any]:
    family = family_of(model)
    if family.example_inputs is not None:
        if text_tokens is not None:
            raise ModelError(f"the length of the text of a {type(model).__name__} cannot be chosen; leave it out")
        return family.example_inputs(model, batch_size, size)
    sample, conditions = example_batch(model, batch_size, size)
    if text_tokens is not None:
        texts = {name: value for name, value in conditions.items() if name in TEXTS}
        conditions = {**conditions, **{name: _of_length(value, text_tokens) for name, value in texts.items()}}
    timesteps = torch.ones(batch_size, dtype=torch.int64, device=sample.device)
    with KnownValues():
        inputs = family.arguments(model, sample, timesteps, arguments(conditions, sample.dtype))
    return tree_map_only(Tensor, partial(placed_like, sample), inputs)


def _of_length(value: Tensor, tokens: int) -> Tensor:
    """The first tokens along the second axis, repeated if there are too few."""
    times = [1] * value.ndim
    times[1] = -(-tokens // value.shape[1])
    return value.repeat(times)[:, :tokens]


def takes_text(model: nn.Module) -> bool:
    """Whether the network attends to text."""
    return "encoder_hidden_states" in inspect.signature(model.forward).parameters or bool(family_of(model).prompts)


def condition_names(model: nn.Module) -> tuple[str, ...]:
    """The conditions that the architecture takes, masks among them; labels only where they are not those of classes."""
    return tuple(family_of(model).conditions(model, 1, lambda *sizes: torch.empty(1, *sizes, device="meta")))


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every module's mode is restored after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients inside the block; every module's mode is restored after it."""
    with in_eval_mode(model), torch.no_grad():
        yield


@contextmanager
def in_full_precision(model: nn.Module) -> Iterator[None]:
    """Disable autocast for passes of `model` inside the block, torch's and accelerate's."""
    wrapped = vars(model).pop("forward") if "_original_forward" in vars(model) else None
    try:
        with torch.autocast(device_of(model).type, enabled=False):
            yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
