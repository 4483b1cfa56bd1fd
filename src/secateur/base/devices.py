"""Which device a command runs on."""

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
        # A CUDA build names its accelerator on a machine without one too.
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = "cpu" if found is None else found.type
    try:
        device = device_of_process(name)
        torch.empty(1, device=device).fill_(1).item()  # one of no memory, such as meta, has no value
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ImportError, AttributeError) as error:
        raise SecateurError(f"there is no device {name!r} here: {first_line(error)}") from error
    return device


def device_of_process(name: str) -> torch.device:
    """The named device; where the name has no index, a launcher gives each of its processes one by LOCAL_RANK."""
    device = torch.device(name)
    if device.index is None and device.type not in ("cpu", "mps"):
        return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    return device


def where_float64(device: torch.device) -> torch.device:
    """`device`, or the CPU for one that has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def in_float64(values: Tensor) -> Tensor:
    """`values` in float64, on the CPU where their device has none."""
    return values.to(where_float64(values.device)).double()


def device_memory(device: torch.device) -> int:
    """Bytes of memory that a GPU has, or the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def watch_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from here on, where the device can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> float:
    """The most memory that tensors took on a GPU, or that this process took in all on a CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # of Unix alone

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
