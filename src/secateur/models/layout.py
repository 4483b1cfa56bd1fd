"""The tensor names of an architecture's original authors, where diffusers has renamed them.

A layout inverts diffusers' conversion of the authors' checkpoints: it renames layers, concatenates those that the
authors fused, and swaps scale and shift back where diffusers swapped them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..base.errors import ModelError

PARTS = ("weight", "bias")


@dataclass(frozen=True)
class Layout:
    """A mapping to the authors' names; in a name `{}` stands for the number of a block, and `*` for the rest.

    Attributes:
        renamed: name of a tensor in diffusers -> the authors'; the first match counts.
        fused: layer of the authors -> the layers of diffusers that are its rows, in order.
        swapped: layers of diffusers whose two halves are in the other order; `{}` is the number of the last block.
    """

    renamed: Mapping[str, str]
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    swapped: tuple[str, ...] = ()

    def original(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a model by the authors' names.

        Raises:
            ModelError: one has no such name.
        """
        left, found = dict(state), {}
        last = max(_numbers(state, "transformer_blocks.{}.norm1.linear"), default=0)
        for name in (f"{layer.format(last)}.{part}" for layer in self.swapped for part in PARTS):
            if name in left:
                left[name] = torch.cat(left[name].chunk(2)[::-1])
        for theirs, ours in self.fused.items():
            for number in _numbers(left, ours[0]):
                for part in PARTS:
                    names = [f"{name.format(number)}.{part}" for name in ours]
                    if all(name in left for name in names):
                        found[f"{theirs.format(number)}.{part}"] = torch.cat([left.pop(name) for name in names])
        return found | {self._renamed(name): tensor for name, tensor in left.items()}

    def _renamed(self, name: str) -> str:
        for ours, theirs in self.renamed.items():
            if match := re.fullmatch(_pattern(ours), name):
                return theirs.replace("*", "{}").format(*match.groups())
        raise ModelError(f"{name} has no name in the original layout of this architecture")


def _pattern(name: str) -> str:
    return re.escape(name).replace(r"\{\}", r"(\d+)").replace(r"\*", "(.+)")


def _numbers(state: Mapping[str, Tensor], layer: str) -> list[int]:
    """The numbers of the blocks that have `layer`."""
    matches = (re.fullmatch(_pattern(f"{layer}.weight"), name) for name in state)
    return sorted(int(match[1]) for match in matches if match)


def projections(template: str) -> tuple[str, ...]:
    """The queries, keys and values of an attention, in the order in which the authors fuse them."""
    return tuple(template.replace("?", x) for x in "qkv")
