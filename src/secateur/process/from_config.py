"""The process that a scheduler config describes."""

from __future__ import annotations

from typing import Any

import torch

from ..base.errors import ModelError, SecateurError, first_line
from .base import Process
from .diffusion import DiffusionProcess
from .flow import CONVENTION, FlowProcess, _flow_config


def process_from_config(config: dict[str, Any]) -> Process:
    """The process that a diffusers `scheduler_config.json` describes.

    The key `_secateur_flow_convention`, which diffusers ignores, names the convention of a flow model.

    Raises:
        ModelError: the scheduler is neither a diffusion nor a flow scheduler, or its class is not named; or its noise
            levels are not those of its betas.
    """
    name = str(config.get("_class_name"))
    if config.get("snr_shift_scale", 1.0) != 1.0:  # of CogVideoX; other schedulers would leave it out
        raise ModelError(f"scheduler {name} shifts the noise levels by snr_shift_scale, which is not supported")
    try:
        if name.startswith("FlowMatch"):
            return _tried(FlowProcess(config, config.get(CONVENTION, "diffusers")))
        if config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction":
            return _tried(FlowProcess(_flow_config(config)))
        if "beta_schedule" in config or "beta_start" in config or name in ("DDPMScheduler", "DDIMScheduler"):
            return _tried(DiffusionProcess(config))
    except SecateurError:
        raise
    except Exception as error:  # whatever diffusers raises for values that make no sense
        raise ModelError(f"the scheduler config cannot be used: {first_line(error)}") from error
    raise ModelError(
        f"scheduler {name} is not supported; use one with a beta schedule (DDPM, DDIM ...), a FlowMatch one, or one "
        "with use_flow_sigmas"
    )


def _tried(process: Process) -> Process:
    """The process, after trying everything that depends on its config."""
    sample, timesteps = torch.zeros(2, 1), process.timesteps(torch.tensor([0.0, 0.99]))
    process.target(sample, process.add_noise(sample, sample, timesteps), timesteps)
    process.scheduler().set_timesteps(1)
    return process
