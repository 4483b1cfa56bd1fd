"""The sampling times of a model distilled into few steps, which are the only times it was trained at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from ..base.errors import ModelError
from .meaning import Meaning

STEPS = "_secateur_num_inference_steps"  # key in a scheduler's config, which diffusers ignores


class _Sampled(Protocol):
    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def num_train_timesteps(self) -> int: ...

    def scheduler(self) -> Any: ...

    def sampler_to_model(self, timestep: Tensor) -> Tensor: ...


def grid_of(process: _Sampled) -> Tensor | None:
    """The times of the process's sampler, in the network's unit, starting at the clean end; None if any time may be
    drawn.

    Raises:
        ModelError: the number of steps is out of range.
    """
    steps = process.config.get(STEPS)
    if steps is None:
        return None
    if not isinstance(steps, int) or not 1 <= steps <= process.num_train_timesteps:
        raise ModelError(f"the process is sampled in {steps} steps; give 1 to {process.num_train_timesteps}")
    solver = process.scheduler()
    solver.set_timesteps(steps)
    return process.sampler_to_model(solver.timesteps).flip(0)


def usual_steps(process: Any, most: int) -> int:
    """The number of steps to draw samples in: that of a model of few steps, else `most`, if there are as many."""
    return getattr(process, "config", {}).get(STEPS) or min(most, process.num_train_timesteps)


def with_steps(meaning: Meaning, config: Mapping[str, Any]) -> Meaning:
    """What a process means, and the number of its steps if only the times of these are drawn."""
    return meaning if config.get(STEPS) is None else (*meaning, ("steps", config[STEPS]))


def drawn_from(grid: Tensor, u: Tensor) -> Tensor:
    """The time of the grid for u in [0, 1), in the shape of u."""
    return grid.to(u.device)[(u * len(grid)).long().clamp(max=len(grid) - 1)]
