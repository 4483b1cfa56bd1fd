"""Exponential moving average of a model's weights."""

import copy
import math

import torch
from torch import Tensor, nn


def warm_decay(decay: float, step: int) -> float:
    """Decay at update `step` (0, 1, ...): min(decay, 1 - (1 + step)^(-3/4)).

    The warm-up makes a short run average over its later steps instead of remembering where it began: after 500
    updates over about the last 100.
    """
    return min(decay, 1 - (1 + step) ** -0.75)


AFTER_CUT = (0.999, 1000)


def decay_at(decay: float, step: int, since_cut: float) -> float:
    """`warm_decay`, and no more than 0.999 for the 1000 updates after a cut, so that the average follows the repair."""
    highest, updates = AFTER_CUT
    return min(warm_decay(decay, step), highest if since_cut < updates else 1.0)


class Ema:
    """Running average of a model, a `model` of its own in eval mode, with the same `requires_grad` flags."""

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int, since_cut: float = math.inf) -> None:
        """Move the average towards `model` after its update number `step` (0, 1, ...); buffers are copied.

        `since_cut` updates were done since units last left the model.
        """
        ours: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - decay_at(self.decay, step, since_cut))
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
