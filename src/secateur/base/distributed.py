"""The processes that a launcher such as torchrun started: which one this is, and where they wait for each other."""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from accelerate.state import PartialState
from torch import Tensor

from .errors import SecateurError

Result = TypeVar("Result")
# Rank, number of tasks and rank on the node. Slurm's number is that of a step: a batch script is one process of many.
LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
)
TIMEOUT = timedelta(days=1)  # processes wait for the one that samples, encodes or decides alone


def adopt_launcher() -> None:
    """Let the tasks of srun and mpirun know each other, by the variables that torchrun would have set.

    They are set once, in this process's environment; where RANK is set, whoever set it knows better. Tasks of one node
    meet on it, those of several on the first node of the step.
    """
    names = next((names for names in LAUNCHERS if int(os.environ.get(names[1], "1")) > 1), None)
    if names is None or "RANK" in os.environ:
        return
    rank, world, local = (os.environ[name] for name in names)
    os.environ |= {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local}
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", os.environ.get("SLURM_STEP_NODELIST", ""))
    os.environ.setdefault("MASTER_ADDR", "".join(part or "" for part in first.groups()) if first else "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(29500 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10000))


def process_index() -> int:
    """The number of this process, from 0, by RANK."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes run the same command, by WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes and prints."""
    return process_index() == 0


def process_group(on_cpu: bool) -> PartialState:
    """The launcher's processes as a group, begun by the first call, which meets the others, and ended at exit.

    There is one for all that a command does: the next would read in the store where the last one met, and connect to
    nobody.
    """
    adopt_launcher()
    if not torch.distributed.is_initialized():
        atexit.register(_end_process_group)
    return PartialState(cpu=on_cpu, timeout=TIMEOUT)


def wait_for_everyone(on_cpu: bool) -> None:
    """Return when every process has come here; at once when there is one."""
    if process_count() > 1:
        process_group(on_cpu).wait_for_everyone()


def main_first(stage: Callable[[], Result], on_cpu: bool) -> Result:
    """What `stage` returns: on the main process, and then on the others, which find there what that one wrote."""
    if is_main_process():
        result = stage()
        wait_for_everyone(on_cpu)
        return result
    wait_for_everyone(on_cpu)
    return stage()


def sum_over_processes(tensor: Tensor) -> Tensor:
    """`tensor`, in place, summed over all processes; every one must call this with a tensor of the same shape."""
    if process_count() > 1:
        process_group(tensor.device.type == "cpu")
        torch.distributed.all_reduce(tensor)
    return tensor


def same_in_all_processes(tensor: Tensor) -> Tensor:
    """`tensor` of the main process, in place, in all of them: rounding may differ between machines."""
    if process_count() > 1:
        process_group(tensor.device.type == "cpu")
        torch.distributed.broadcast(tensor, src=0)
    return tensor


def abandon_process_group() -> None:
    """Leave the end of the group to the launcher: this process failed, and others may be waiting for it."""
    atexit.unregister(_end_process_group)


def _end_process_group() -> None:
    """End the group while the interpreter is whole, after all that wraps a model for it, unless the script failed.

    A wrapper that outlives its group waits, with Python's lock in hand, for threads that may be waiting for that lock.
    """
    if torch.distributed.is_initialized() and not hasattr(sys, "last_value"):
        gc.collect()
        torch.distributed.destroy_process_group()


def one_process(command: str) -> None:
    """Refuse to run `command` in several processes, which would write the same files.

    Raises:
        SecateurError: a launcher started more than one.
    """
    if process_count() > 1:
        raise SecateurError(f"{command} runs in one process; compress, finetune, evaluate and sample run in several")
