"""Gradient checkpointing: activations are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..base.errors import TrainingError


def check_recomputing(model: nn.Module) -> None:
    """Check that `model` can recompute its activations, before long work starts.

    Raises:
        TrainingError: it cannot.
    """
    if not getattr(model, "_supports_gradient_checkpointing", False):
        raise TrainingError(
            f"{type(model).__name__} has no gradient checkpointing; turn recovery.gradient_checkpointing off, "
            "or raise the accumulation to save memory"
        )


@contextmanager
def recomputing(model: nn.Module, asked: bool) -> Iterator[None]:
    """Let `model` recompute its activations inside the block, if `asked`."""
    if not asked:
        yield
        return
    check_recomputing(model)
    network: Any = model
    before = network.is_gradient_checkpointing
    network.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if not before:
            network.disable_gradient_checkpointing()
