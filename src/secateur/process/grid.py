"""The times that a model is sampled at: of one that was distilled into few steps, the only ones that it knows."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..base.errors import ModelError

STEPS = "_secateur_num_inference_steps"  # of a scheduler's config; diffusers ignores it


class _Sampled(Protocol):
    @property
    def config(self) -> dict[str, Any]: ...

    @property
    def num_train_timesteps(self) -> int: ...

    def scheduler(self) -> Any: ...

    def sampler_to_model(self, timestep: Tensor) -> Tensor: ...


def grid_of(process: _Sampled) -> Tensor | None:
    """The times of the process's sampler, in the network's unit, the clean end first; None where any time may be drawn.

    Raises:
        ModelError: a number of steps that the process does not have.
    """
    steps = process.config.get(STEPS)
    if steps is None:
        return None
    if not isinstance(steps, int) or not 1 <= steps <= process.num_train_timesteps:
        raise ModelError(f"the process is sampled in {steps} steps; give 1 to {process.num_train_timesteps}")
    solver = process.scheduler()
    solver.set_timesteps(steps)
    return process.sampler_to_model(solver.timesteps).flip(0)


def drawn_from(grid: Tensor, u: Tensor) -> Tensor:
    """The time of the grid that u in [0, 1) falls on, in the shape of u."""
    return grid.to(u.device)[(u * len(grid)).long().clamp(max=len(grid) - 1)]
