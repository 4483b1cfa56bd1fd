"""Processes of a launcher such as torchrun: which one this is, and how they wait for each other."""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
from accelerate.state import PartialState
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from .errors import SecateurError, first_line
from .files import write_text

Result = TypeVar("Result")
# Rank, number of tasks and rank on the node. Slurm's number is that of a step: a batch script is one process of many.
LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
# Tasks on a node; Slurm's is a list such as 8(x2).
ON_A_NODE = (
    "SLURM_STEP_TASKS_PER_NODE",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    "MV2_COMM_WORLD_LOCAL_SIZE",
    "MPI_LOCALNRANKS",
)
TIMEOUT = timedelta(minutes=15)  # for collective operations; a process that is missing after that has died
PATIENCE = timedelta(days=1)  # for waits on one process that samples, encodes or decides alone


def adopt_launcher() -> None:
    """Set the variables that torchrun sets for tasks of srun and mpirun, so that they find each other.

    They are set once, in this process's environment, unless RANK is set already. Tasks on one node meet there, those on
    several on the first node of the step.

    Raises:
        SecateurError: there are several tasks, and the variables do not say which one this is.
    """
    names = next((names for names in LAUNCHERS if int(os.environ.get(names[1], "1")) > 1), None)
    if "RANK" in os.environ:
        return
    if process_count() > 1:
        raise SecateurError(f"WORLD_SIZE is {process_count()}, and RANK is not set; start with torchrun, or unset it")
    if names is None:
        return
    if lacking := [name for name in names if name not in os.environ]:
        raise SecateurError(
            f"{names[1]} is {os.environ[names[1]]}, and {lacking[0]} is not set; start with torchrun, or unset it"
        )
    rank, world, local = (os.environ[name] for name in names)
    os.environ |= {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local}
    on_a_node = os.environ.get(ON_A_NODE[LAUNCHERS.index(names)])
    if on_a_node is not None and (count := re.match(r"\d+", on_a_node)):
        os.environ.setdefault("LOCAL_WORLD_SIZE", count[0])
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", os.environ.get("SLURM_STEP_NODELIST", ""))
    os.environ.setdefault("MASTER_ADDR", "".join(part or "" for part in first.groups()) if first else "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(29500 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10000))


def process_index() -> int:
    """The number of this process, from 0 (RANK)."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """The number of processes that run the command (WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes and prints."""
    return process_index() == 0


def process_group(on_cpu: bool) -> PartialState:
    """The process group of the launcher's processes, created by the first call and destroyed at exit.

    A command uses one group throughout: a second would find stale entries in the store, and fail to connect.

    Raises:
        SecateurError: the environment does not say where they meet.
    """
    adopt_launcher()
    if not torch.distributed.is_initialized():
        atexit.register(_end_process_group)
    try:
        return PartialState(cpu=on_cpu, timeout=TIMEOUT)
    except ValueError as error:  # torch names the variable that is not set
        raise SecateurError(f"the processes cannot meet: {first_line(error)}; start them with torchrun") from error


def wait_for_everyone(on_cpu: bool) -> None:
    """Return when every process has called this; at once if there is one."""
    if process_count() > 1:
        process_group(on_cpu)
        torch.distributed.barrier(group=patient_group())


def from_main(decide: Callable[[], Result]) -> Result:
    """The main process's result of `decide`, in all processes, however long it takes; the group must exist."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return decide()
    decided: list[Any] = [decide() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(decided, group=patient_group())
    return decided[0]


def blind_processes(folder: Path, on_cpu: bool) -> list[int]:
    """The processes that do not see the same `folder` as the main one."""
    if process_count() == 1:
        return []
    process_group(on_cpu)
    mark = folder / ".seen-by-all"
    token = from_main(lambda: f"{os.getpid()} {time.time_ns()}")
    if is_main_process():
        write_text(mark, token)
    wait_for_everyone(on_cpu)
    seen: list[Any] = [None] * process_count()
    torch.distributed.all_gather_object(seen, _reads(mark, token), group=patient_group())
    if is_main_process():
        mark.unlink()
    return [rank for rank, sees in enumerate(seen) if not sees]


def _reads(path: Path, text: str) -> bool:
    """Whether `path` holds `text`; a network file system may show it late."""
    for wait in (0.0, 0.5, 1.5, 3.0):
        time.sleep(wait)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            return True
    return False


_patient: dict[Any, Any] = {}  # by the group that it belongs to


def patient_group() -> Any:
    """A CPU group over all processes for waits of hours, such as those on a disk; every process must create it in the
    same call."""
    world = torch.distributed.group.WORLD
    if world not in _patient:
        _patient.clear()
        _patient[world] = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    return _patient[world]


def main_first(stage: Callable[[], Result], on_cpu: bool) -> Result:
    """Run `stage` on the main process, then on the others, which read what it wrote."""
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
    """Do not destroy the group at exit: this process failed, and others may be waiting for it."""
    atexit.unregister(_end_process_group)


def _end_process_group() -> None:
    """Destroy the groups before the interpreter shuts down, after all model wrappers, unless the script failed.

    A wrapper that outlives its group holds Python's lock while it waits for threads that may need that lock. A group
    that is still held when the interpreter shuts down may abort the process: one of its threads may be about to free a
    tensor, for which it needs that lock. The meshes of FSDP hold theirs, and caches of torch hold the meshes.
    """
    if torch.distributed.is_initialized() and not hasattr(sys, "last_value"):
        _patient.clear()
        gc.collect()
        torch.distributed.destroy_process_group()
        for mesh in (each for each in gc.get_objects() if type(each) is DeviceMesh):
            vars(mesh).get("_pg_registry", {}).clear()  # not there before torch 2.10


def require_folder(command: str, out: object) -> None:
    """Refuse to run `command` in several processes without a folder, through which they share their work.

    Raises:
        SecateurError: a launcher started more than one, and `out` is None.
    """
    if out is None and process_count() > 1:
        raise SecateurError(f"{command} in several processes needs a folder that all of them see; give out=")


def one_process(command: str) -> None:
    """Refuse to run `command` in several processes: they would write the same files.

    Raises:
        SecateurError: a launcher started more than one.
    """
    if process_count() > 1:
        raise SecateurError(
            f"{command} runs in one process; start it without a launcher (compress, compensate, record, finetune, "
            "evaluate, sample, encode, sweep and best run in several)"
        )
