"""Memory layout of convolutions: GPUs compute them fastest with the channels of a pixel beside each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .quantized import is_quantized


def wants_channels_last(model: nn.Module, device: torch.device) -> bool:
    """Whether passes of `model` on `device` are faster in channels-last: those of U-Nets on GPUs.

    A transformer's only convolution is that of its patches, whose stride is its kernel.
    """
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return device.type == "cuda" and any(each.kernel_size != each.stride for each in convolutions)


def lay_out(
    models: Iterable[nn.Module], memory_format: torch.memory_format, optimizer: Optimizer | None = None
) -> None:
    """Lay out the kernels of `models`, in place, and what `optimizer` remembers of them; values do not change."""
    for model in models:
        convert: Any = nn.Module.to  # avoids diffusers' own
        convert(model, memory_format=memory_format)
    for remembered in [] if optimizer is None else optimizer.state.values():
        for key, value in remembered.items():
            if isinstance(value, Tensor) and value.ndim == 4 and not is_quantized(value):  # codes have one layout
                remembered[key] = value.contiguous(memory_format=memory_format)
