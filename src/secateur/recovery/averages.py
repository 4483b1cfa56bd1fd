"""Moving averages of a training loop: ours, torch's, diffusers', or any second module."""

from __future__ import annotations

import copy
from typing import TypeAlias

import torch
from diffusers.training_utils import EMAModel
from torch import nn
from torch.optim.swa_utils import AveragedModel

from .ema import Ema

Average: TypeAlias = "Ema | AveragedModel | EMAModel | nn.Module"


def module_of(average: Ema | AveragedModel | nn.Module) -> nn.Module:
    """The module whose weights are the average."""
    if isinstance(average, Ema):
        return average.model
    return average.module if isinstance(average, AveragedModel) else average


@torch.no_grad()
def restart_average(average: Average, model: nn.Module) -> None:
    """Restart the average from the weights of `model`."""
    if not isinstance(average, EMAModel):
        module_of(average).load_state_dict(model.state_dict())
        return
    for shadow, parameter in zip(average.shadow_params, model.parameters(), strict=True):
        shadow.copy_(parameter)


def averaged(model: nn.Module, average: Average) -> nn.Module:
    """A module with the averaged weights; for diffusers', which keeps tensors only, a copy of `model` in eval mode."""
    if not isinstance(average, EMAModel):
        return module_of(average)
    module = copy.deepcopy(model).eval()
    with torch.no_grad():
        average.copy_to(module.parameters())
    return module
