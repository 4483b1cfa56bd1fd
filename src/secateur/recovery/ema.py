"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn


def warm_decay(decay: float, step: int) -> float:
    """Decay at update `step` (0, 1, ...): min(decay, 1 - (1 + step)^(-3/4)).

    The warm-up makes a short run average over its later steps instead of remembering where it began: after 500
    updates over about the last 100.
    """
    return min(decay, 1 - (1 + step) ** -0.75)


class Ema:
    """Running average of a model, a `model` of its own in eval mode, with the same `requires_grad` flags."""

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        self.model = copy.deepcopy(model).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards `model` after update `step` (0, 1, ...); buffers are copied.

        Counted from when units last left the model, it forgets the weights of before, which were another network's.
        """
        ours: list[Tensor] = list(self.model.parameters())
        theirs: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(ours, theirs, 1 - warm_decay(self.decay, step))
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
