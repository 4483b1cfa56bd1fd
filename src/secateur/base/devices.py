"""The device that a command runs on."""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

from .errors import SecateurError, first_line

WITHOUT_FLOAT64 = ("mps",)  # Apple's


def choose_device(name: str) -> torch.device:
    """The named device, made the current one; "auto" is the accelerator when there is one, else the CPU.

    Raises:
        SecateurError: there is no such device.
    """
    if name == "auto":
        # A CUDA build reports an accelerator even on a machine without one.
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = "cpu" if found is None else found.type
    try:
        device = device_of_process(name)
        torch.empty(1, device=device).fill_(1).item()  # fails on devices without memory, such as meta
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise SecateurError(f"there is no device {name!r} here: {first_line(error)}") from error
    return device


def device_of_process(name: str) -> torch.device:
    """The named device; without an index, each process of a launcher gets one by LOCAL_RANK."""
    device = torch.device(name)
    if device.index is None and device.type not in ("cpu", "mps"):
        return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    return device


def where_float64(device: torch.device) -> torch.device:
    """`device`, or the CPU for one that has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def in_float64(values: Tensor) -> Tensor:
    """`values` in float64, on the CPU if their device does not have it."""
    return values.to(where_float64(values.device)).double()


def device_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def has_own_memory(device: torch.device) -> bool:
    """Whether tensors on `device` do not take memory of the CPU."""
    return device.type == "cuda"


def watch_peak_memory(device: torch.device) -> None:
    """Reset the count of `peak_memory`, if the device supports it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """Peak memory of tensors on a GPU, or of this process on a CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # Unix only

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
