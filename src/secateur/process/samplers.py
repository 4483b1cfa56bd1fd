"""Samplers by name: any diffusers scheduler that fits the process of a model."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from ..base.errors import SecateurError, first_line, require
from ..base.units import number_of
from .base import Process
from .flow import TOKENS

# Settings that define the process. They are passed explicitly, since another scheduler class may have other defaults.
OF_THE_PROCESS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
SAME_LEVELS = 1e-5  # difference of alphas_cumprod: some schedulers put 2^-24 for a signal of zero


def sampler(process: Process, name: str | None = None) -> Any:
    """A new diffusers scheduler of class `name` for `process`; by default its own deterministic one.

    Raises:
        SecateurError: diffusers has no such scheduler, or it is made for another kind of process or for other betas.
    """
    base = process.scheduler()
    if name is None:
        return base
    chosen = _scheduler_class(name)
    flow = hasattr(base.config, "shift")  # as every FlowMatch scheduler has
    options = inspect.signature(chosen.__init__).parameters
    if flow and issubclass(type(base), chosen):
        return base
    shifts = base.config.get("shift_terminal") or getattr(process, "config", {}).get(TOKENS) is not None
    require(not (flow and shifts), f"{name} does not take the model's own shift of its times; leave the scheduler out")
    if flow and name.startswith("FlowMatch"):
        return chosen.from_config(base.config)
    if flow and "use_flow_sigmas" in options:
        as_flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": base.config.shift}
        return chosen.from_config(base.config, **as_flow)
    if flow or "beta_schedule" not in options:
        fitting = "FlowMatchEulerDiscreteScheduler, DPMSolverMultistepScheduler or UniPCMultistepScheduler"
        fitting = fitting if flow else "DDIMScheduler, DPMSolverMultistepScheduler or EulerDiscreteScheduler"
        kind = "flow" if flow else "diffusion"
        raise SecateurError(f"{name} does not sample a {kind} model; use {fitting}")
    settings = {name: base.config[name] for name in OF_THE_PROCESS}
    if "variance_type" in options and str(base.config.get("variance_type")).startswith("learned"):
        settings["variance_type"] = "fixed_small"  # `predict` does not return the variance
    try:
        found = chosen.from_config(base.config, **settings)
    except (NotImplementedError, ValueError) as error:  # betas that it does not know
        raise SecateurError(f"{name} does not fit the model's scheduler: {first_line(error)}") from error
    same = torch.allclose(found.alphas_cumprod, base.alphas_cumprod, atol=SAME_LEVELS)
    require(same, f"{name} has other noise levels than the model's scheduler (zero SNR, a shift); use DDIMScheduler")
    return found


def _scheduler_class(name: str) -> Any:
    known = [found for found in dir(diffusers) if found.endswith("Scheduler")]
    if name not in known:
        close = [found for found in known if name.lower() in found.lower()][:3]
        close = close or difflib.get_close_matches(name, known, 3, 0.3)
        raise SecateurError(f"diffusers has no scheduler {name!r}; did you mean {', '.join(close) or 'DDIMScheduler'}?")
    return getattr(diffusers, name)


def check_sampler(process: Process, name: str | None, num_inference_steps: int) -> None:
    """Take all steps on one pixel, to find errors before a sampling run.

    Raises:
        SecateurError: as `sampler`; or there are more steps than the process has, or the scheduler does not support
            them.
    """
    require(
        hasattr(process, "scheduler"), "networks with forward= or loss= draw no samples; leave scheduler and ftle out"
    )
    scheduler, most = sampler(process, name), process.num_train_timesteps
    require(1 <= num_inference_steps <= most, f"num_inference_steps is {num_inference_steps}; give 1 to {most}")
    try:
        scheduler.set_timesteps(num_inference_steps)
        sample = torch.zeros(1, 1, 1, 1)
        for timestep in scheduler.timesteps:
            output = torch.zeros_like(scaled(scheduler, sample, timestep))
            sample = step(scheduler, output, timestep, sample, [torch.Generator()])
    except Exception as error:  # schedulers may raise anything for unsupported settings
        raise SecateurError(
            f"{type(scheduler).__name__} cannot take {number_of(num_inference_steps, 'step')} here: {first_line(error)}"
        ) from error


def scaled(scheduler: Any, sample: Tensor, timestep: Tensor) -> Tensor:
    """What the network takes in place of `sample`: flow schedulers do not scale it, and have no such function."""
    return scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample


def step(
    scheduler: Any, output: Tensor, timestep: Tensor, sample: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """One step; noise that a stochastic scheduler adds to image i is drawn from generator i."""
    drawn = {"generator": list(generators)} if "generator" in inspect.signature(scheduler.step).parameters else {}
    return scheduler.step(output, timestep, sample, return_dict=False, **drawn)[0]
