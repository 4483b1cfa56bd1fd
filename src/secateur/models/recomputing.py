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
    """Let `model`, which can, recompute its activations inside the block, if `asked`."""
    if not asked:
        yield
        return
    network: Any = model
    before = network.is_gradient_checkpointing
    network.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if not before:
            network.disable_gradient_checkpointing()
