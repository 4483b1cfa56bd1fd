"""Weights that are kept on the CPU and copied to the device block by block, while their block runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def visiting(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> list[RemovableHandle]:
    """Keep the weights of the `blocks` on the CPU, and use copies on `device` while a block runs.

    Copies that a graph holds live as long as it does, so derivatives are right, but take the memory of all blocks.
    Weights outside the blocks are moved to `device`. Removing the handles leaves the blocks on the CPU.
    """
    handles: list[RemovableHandle] = []
    inside = [block.cpu() for block in blocks]
    for block in inside:
        if device.type == "cuda":  # from which copies are asynchronous
            for parameter in block.parameters():
                parameter.data = parameter.data.pin_memory()
        visit = _Visit(block, device)
        handles.append(block.register_forward_pre_hook(visit.come, prepend=True))
        handles.append(block.register_forward_hook(visit.leave, always_call=True))
    kept = {id(parameter) for block in inside for parameter in block.parameters()}
    for held in (*model.parameters(), *model.buffers()):
        if id(held) not in kept:
            held.data = held.data.to(device)
    return handles


class Visitor(nn.Parameter):
    """A copy of a weight, on the device."""


class _Visit:
    """One block's copy on the device. A block inside another running block is there already."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.block, self.device = block, device
        self.at_home: list[tuple[nn.Module, str, nn.Parameter]] = []

    def come(self, *_: Any) -> None:
        for module in self.block.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not isinstance(parameter, Visitor):
                    self.at_home.append((module, name, parameter))
                    copy = parameter.detach().to(self.device, copy=True, non_blocking=True)
                    module._parameters[name] = Visitor(copy, parameter.requires_grad)

    def leave(self, *_: Any) -> None:
        for module, name, parameter in self.at_home:
            module._parameters[name] = parameter
        self.at_home.clear()
