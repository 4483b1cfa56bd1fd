"""Gradient checkpointing: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def can_recompute(model: nn.Module) -> bool:
    """Whether `model` has gradient checkpointing."""
    return bool(getattr(model, "_supports_gradient_checkpointing", False))


@contextmanager
def recomputing(model: nn.Module, asked: bool) -> Iterator[None]:
    """Let `model`, which can, recompute its activations inside the block, if `asked`; one that does so already keeps
    its own way."""
    network: Any = model
    if not asked or network.is_gradient_checkpointing:
        yield
        return
    network.enable_gradient_checkpointing()
    try:
        yield
    finally:
        network.disable_gradient_checkpointing()


@contextmanager
def keeping_activations(model: nn.Module) -> Iterator[None]:
    """Let `model` keep its activations inside the block, also if it recomputes them otherwise."""
    checkpointed: list[Any] = [each for each in model.modules() if getattr(each, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True
