"""Processes given as a name, a diffusers scheduler, its config, or a `Process`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from diffusers import SchedulerMixin
from typing_extensions import TypeIs

from ..base.errors import SecateurError, require, require_known
from .base import Process
from .diffusion import DiffusionProcess
from .flow import CONVENTION, FlowProcess
from .grid import STEPS
from .samplers import OF_THE_PROCESS

ProcessLike: TypeAlias = str | Mapping[str, Any] | SchedulerMixin | Process | None

CLIPPING = ("clip_sample", "thresholding")  # a scheduler that has no such setting does not clip
DEFAULTED = "_use_default_values"  # of a scheduler in memory: settings that were not given
_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
PROCESSES: dict[str, dict[str, Any] | None] = {
    "auto": None,
    "ddpm": {"_class_name": "DDPMScheduler", "beta_schedule": "linear"},
    "v-prediction": {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "prediction_type": "v_prediction"},
    "flow": _FLOW,
    "flow-sit": _FLOW | {CONVENTION: "sit"},
}


def is_process(process: object) -> TypeIs[Process]:
    """Whether it is a `Process`; a scheduler is none, and warns when it is asked for attributes of its config."""
    return not isinstance(process, SchedulerMixin) and isinstance(process, Process)


def config_of(process: ProcessLike) -> dict[str, Any] | None:
    """The scheduler config for `process`: None for the one beside the model, empty for a user's own `Process`.

    A name with a number, such as `flow:4`, is for a model distilled into that many steps: only its sampling times are
    drawn. `auto:4` adds this to the config beside the model.

    Raises:
        SecateurError: it is none of these.
    """
    if process is None:
        return None
    if isinstance(process, str):
        name, _, steps = process.partition(":")
        require_known("process", name, PROCESSES)
        require(steps.isdecimal() or name == process, f"process is {process}; give {name}, or {name}:4 for four steps")
        return {**(PROCESSES[name] or {}), STEPS: int(steps)} if steps else PROCESSES[name]
    if isinstance(process, SchedulerMixin):
        # Where a scheduler's own defaults were used, diffusers would take those of DDPM, whose betas may be others.
        defaults = [name for name in process.config.get(DEFAULTED, ()) if name not in OF_THE_PROCESS]
        clipping = {} if "beta_schedule" not in process.config else {name: False for name in CLIPPING}
        return {**clipping, **process.config, "_class_name": type(process).__name__, DEFAULTED: defaults}
    if isinstance(process, Mapping):
        return dict(process)
    if isinstance(process, DiffusionProcess | FlowProcess):
        return process.scheduler_config
    if isinstance(process, Process):
        return {}
    raise SecateurError(
        f"a process is a name, a diffusers scheduler, its config or a Process; this is a {type(process).__name__}"
    )


def over(config: Mapping[str, Any] | None, beside: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """`config`, or the config `beside` the model if there is none or it only adds a number of steps."""
    if config is None or is_partial(config):
        return {**beside(), **(config or {})}
    return dict(config)


def is_partial(config: Mapping[str, Any]) -> bool:
    """Whether it contains a number of steps and nothing else."""
    return set(config) == {STEPS}


def named(process: ProcessLike) -> str:
    """The name of `process` in a run: its name, or the scheduler's class."""
    if process is None or isinstance(process, str):
        return process or "auto"
    return str(process.get("_class_name")) if isinstance(process, Mapping) else type(process).__name__
