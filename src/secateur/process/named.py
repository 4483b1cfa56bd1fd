"""Processes by whatever a user has at hand: a name, a diffusers scheduler, its config, or a `Process`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from diffusers import SchedulerMixin

from ..base.errors import SecateurError, require_known
from .base import Process
from .diffusion import DiffusionProcess
from .flow import CONVENTION, FlowProcess

ProcessName = Literal["auto", "ddpm", "v-prediction", "flow", "flow-sit"]
ProcessLike: TypeAlias = ProcessName | Mapping[str, Any] | SchedulerMixin | Process | None

_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
PROCESSES: dict[str, dict[str, Any] | None] = {
    "auto": None,
    "ddpm": {"_class_name": "DDPMScheduler", "beta_schedule": "linear"},
    "v-prediction": {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "prediction_type": "v_prediction"},
    "flow": _FLOW,
    "flow-sit": _FLOW | {CONVENTION: "sit"},
}


def config_of(process: ProcessLike) -> dict[str, Any] | None:
    """The scheduler config that stands for `process`: None for what is beside the model, none of a process of others.

    Raises:
        SecateurError: it is none of these.
    """
    if process is None:
        return None
    if isinstance(process, str):
        require_known("process", process, PROCESSES)
        return PROCESSES[process]
    if isinstance(process, SchedulerMixin):
        return {**process.config, "_class_name": type(process).__name__}
    if isinstance(process, Mapping):
        return dict(process)
    if isinstance(process, DiffusionProcess | FlowProcess):
        return process.scheduler_config
    if isinstance(process, Process):
        return {}
    raise SecateurError(
        f"a process is a name, a diffusers scheduler, its config or a Process; this is a {type(process).__name__}"
    )


def named(process: ProcessLike) -> str:
    """What a run calls `process`: its name, or the scheduler's class."""
    if process is None or isinstance(process, str):
        return process or "auto"
    return str(process.get("_class_name")) if isinstance(process, Mapping) else type(process).__name__
