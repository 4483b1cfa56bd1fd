"""Checkpoints of a recovery run: safetensors and JSON, always a whole one on disk.

`<folder>/checkpoints/step-000500/` holds `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` and
`state.json`. Adam's moments are stored by parameter name, so that moments can be cut like their parameters.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..base.errors import SecateurError, TrainingError, first_line
from ..base.files import atomic_folder, read_json, write_json
from ..base.settings import FREE_IN_RECOVERY, differing
from ..models.network import device_of
from .ema import Ema
from .log import Window

# What reading a checkpoint raises if it is damaged, or if it is of another model.
UNFIT = (SecateurError, SafetensorError, OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)


@dataclass
class TrainingState:
    """Everything that a step changes.

    `step` counts the steps done, `seconds` the time they took; `jacobian_scale` is the factor on the weight of the
    Jacobian term that `balanced` steps have found. `cuts` are those made while training, and `pruning` is what a
    pruner remembers, both as JSON. `window` is what the next line of the log will be about.
    """

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    scaler: Any = None
    step: int = 0
    seconds: float = 0.0
    jacobian_scale: float = 1.0
    balanced: int = 0
    cuts: list[dict[str, Any]] = field(default_factory=list)
    pruning: dict[str, Any] = field(default_factory=dict)
    window: Window = field(default_factory=dict)

    @property
    def since_cut(self) -> int:
        """Steps since the last of the cuts, or since the beginning."""
        return self.step - (self.cuts[-1]["step"] if self.cuts else 0)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of the run in `folder`, or None."""
    return max((Path(folder) / "checkpoints").glob("step-*"), default=None)


def save_checkpoint(folder: str | Path, state: TrainingState, settings: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `state`, then remove older ones and what killed runs left behind.

    `settings` are what a run that goes on from it must share.

    Raises:
        SecateurError: the disk is full, or the folder cannot be written; the older checkpoint is still there.
    """
    path = Path(folder) / "checkpoints" / f"step-{state.step:08d}"
    with atomic_folder(path) as temporary:
        save_file(_contiguous(state.model.state_dict()), temporary / "model.safetensors")
        save_file(_contiguous(state.ema.model.state_dict()), temporary / "ema.safetensors")
        save_file(_contiguous(optimizer_tensors(state)), temporary / "optimizer.safetensors")
        saved = {
            "step": state.step,
            "seconds": state.seconds,
            "jacobian_scale": state.jacobian_scale,
            "balanced": state.balanced,
            "cuts": state.cuts,
            "pruning": state.pruning,
            "window": state.window,
            "scaler": state.scaler.state_dict() if state.scaler else None,
            "settings": _as_json(settings),
        }
        write_json(temporary / "state.json", saved)
    for other in path.parent.iterdir():
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


def restore_checkpoint(
    folder: str | Path,
    state: TrainingState,
    settings: Mapping[str, Any],
    replay_cuts: Callable[[TrainingState, list[dict[str, Any]]], None],
) -> None:
    """Bring `state` to the newest checkpoint in `folder`; leave it as it is if there is none.

    `replay_cuts` makes a fresh state fit what was cut before the checkpoint.

    Raises:
        TrainingError: the checkpoint was written with other settings or another model, or is damaged.
    """
    path = newest_checkpoint(folder)
    if path is None:
        return
    try:
        saved = read_json(path / "state.json")
        changes = differing(saved["settings"], _as_json(settings), FREE_IN_RECOVERY)
        if not changes:
            replay_cuts(state, saved["cuts"])
            _load(path, saved, state)
    except UNFIT as error:
        reason = first_line(error)
        raise TrainingError(f"{path} is damaged or does not fit this model: {reason}; use another folder") from error
    if changes:
        said = ", ".join(f"{name} {there} there, {here} here" for name, (there, here) in changes.items())
        raise TrainingError(f"{path} was written with other settings ({said}); use them, or another folder")


def _load(path: Path, saved: dict[str, Any], state: TrainingState) -> None:
    state.model.load_state_dict(load_file(path / "model.safetensors"))
    state.ema.model.load_state_dict(load_file(path / "ema.safetensors"))
    moments = load_file(path / "optimizer.safetensors", device=str(device_of(state.model)))
    parameters = dict(state.model.named_parameters())
    for name in {key.rpartition(".")[0] for key in moments}:
        parameter = parameters[name]
        state.optimizer.state[parameter] = {
            "step": moments[f"{name}.step"],
            "exp_avg": moments[f"{name}.exp_avg"].view_as(parameter),
            "exp_avg_sq": moments[f"{name}.exp_avg_sq"].view_as(parameter),
        }
    if state.scaler and saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    state.step, state.seconds = int(saved["step"]), float(saved["seconds"])
    state.jacobian_scale, state.balanced = float(saved["jacobian_scale"]), int(saved["balanced"])
    state.pruning = saved["pruning"]
    state.window = {name: (total, count) for name, (total, count) in saved["window"].items()}


def optimizer_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Adam's state as `<parameter name>.exp_avg`, `.exp_avg_sq` and `.step`."""
    return {
        f"{name}.{moment}": value
        for name, parameter in state.model.named_parameters()
        for moment, value in state.optimizer.state.get(parameter, {}).items()
    }


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings))
