"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.jacobian import exact
from .rounding import local
from .shards import replace_parameters

Pair = tuple[Tensor, Tensor]


def warm_decay(decay: float, step: int) -> float:
    """Decay at update `step` (0, 1, ...): min(decay, 1 - (1 + step)^(-3/4)).

    The warm-up lets a short run average over its later steps instead of its beginning: after 500 updates, over about
    the last 100.
    """
    return min(decay, 1 - (1 + step) ** -0.75)


@dataclass(frozen=True)
class Followed:
    """Tensors of an average with those of the `model` it follows: parameters of `alike` dtype and device, others, and
    buffers."""

    model: nn.Module
    alike: list[Pair]
    unlike: list[Pair]
    buffers: list[Pair]


class Ema:
    """Running average of a model, held as a second `model` in eval mode with the same `requires_grad` flags.

    It has at least float32 precision, on the model's device or on another. Weights that are not trained are shared with
    the model until `apart`.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, device: torch.device | None = None) -> None:
        frozen = [each for each in model.parameters() if not each.requires_grad and each.dtype == exact(each).dtype]
        shared = {id(each): each for each in frozen if device in (None, each.device)}
        self.model = copy.deepcopy(model, shared).eval()
        self.decay = decay
        self._followed: Followed | None = None
        for own in self.model.parameters():
            own.data = exact(own.data).to(device or own.device)
        for buffer in self.model.buffers():
            buffer.data = buffer.data.to(device or buffer.device)

    @classmethod
    def of(cls, average: nn.Module, decay: float) -> Ema:
        """Wrap a module whose weights are already the average."""
        ema = cls.__new__(cls)
        ema.model, ema.decay, ema._followed = average, decay, None
        return ema

    def follow(self, model: nn.Module | None) -> None:
        """List the tensors of `model` for all updates by it, as long as none of them is replaced by another; None:
        list those of each update again, which takes longer."""
        self._followed = None if model is None else self._listed(model)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards `model` after update `step` (0, 1, ...); buffers are copied.

        If `step` counts from the last cut, the average forgets the weights before it, which were those of another
        network.
        """
        weight = 1 - warm_decay(self.decay, step)
        found = self._followed
        if found is None or found.model is not model:
            found = self._listed(model)
        for mine, other in found.unlike:
            mine.lerp_(other.to(mine.device, mine.dtype), weight)  # converts one at a time
        if found.alike:
            mine_, others = zip(*found.alike, strict=True)
            torch._foreach_lerp_(mine_, others, weight)
        for mine, other in found.buffers:
            mine.copy_(other)

    def _listed(self, model: nn.Module) -> Followed:
        found = Followed(model, [], [], list(zip(self.model.buffers(), model.buffers(), strict=True)))
        for ours, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            mine, other = local(ours).detach(), local(theirs).detach()
            if mine.dtype != other.dtype or mine.device != other.device:
                found.unlike.append((mine, other))
            elif ours is not theirs:
                found.alike.append((mine, other))
        return found

    def apart(self) -> None:
        """Copy the weights that the average shares with the model."""
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        replace_parameters(
            self.model, lambda name, parameter: parameter.detach().clone() if name in frozen else parameter.detach()
        )
