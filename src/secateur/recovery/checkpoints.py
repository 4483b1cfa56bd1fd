"""Checkpoints of a recovery run: safetensors and JSON; there is always a complete one on disk.

`<folder>/checkpoints/step-000500/` holds `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` and
`state.json`. The optimizer's state is stored by parameter name, and cut with the parameters.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..base.errors import SecateurError, TrainingError, first_line
from ..base.files import atomic_folder, read_json, write_json
from ..base.settings import FREE_IN_RECOVERY, as_json, differing, say_differing
from ..models.network import device_of
from .ema import Ema
from .log import Window
from .pruner import AttachedPruner
from .quantized import of_pieces, pieces, plain
from .surgery import SQUARES, follows

# Raised on reading a checkpoint that is damaged or belongs to another model.
UNFIT = (SecateurError, SafetensorError, OSError, RuntimeError, LookupError, TypeError, ValueError, AttributeError)


@dataclass
class TrainingState:
    """Everything that a step changes.

    `step` counts the steps done, `seconds` their time. `jacobian_scale` is the factor on the weight of the Jacobian
    term, found over `balanced` steps. `pruning` is the pruner, if any. `window` collects values for the next line of
    the log.
    """

    model: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    scaler: Any = None
    step: int = 0
    seconds: float = 0.0
    jacobian_scale: float = 1.0
    balanced: int = 0
    pruning: AttachedPruner | None = None
    window: Window = field(default_factory=dict)

    @property
    def since_cut(self) -> int:
        """Steps since the last cut, or since the beginning."""
        return self.step - (self.pruning.last_cut if self.pruning is not None else 0)


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The newest checkpoint of the run in `folder`, or None."""
    return max((Path(folder) / "checkpoints").glob("step-*"), default=None)


def save_checkpoint(folder: str | Path, state: TrainingState, settings: Mapping[str, Any]) -> Path:
    """Write the checkpoint of `state`, then remove older ones and leftovers of killed runs.

    `settings` must be the same in a run that resumes from it.

    Raises:
        SecateurError: the disk is full, or the folder cannot be written; the older checkpoint is kept.
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
            "optimizer": {name: sorted(remembered) for name, remembered in _by_name(state).items()},
            "pruning": state.pruning and state.pruning.state_dict(),
            "window": state.window,
            "scaler": state.scaler.state_dict() if state.scaler else None,
            "settings": as_json(settings),
        }
        write_json(temporary / "state.json", saved)
    for other in path.parent.iterdir():
        if other != path:
            shutil.rmtree(other, ignore_errors=True)
    return path


def restore_checkpoint(folder: str | Path, state: TrainingState, settings: Mapping[str, Any]) -> None:
    """Load the newest checkpoint in `folder` into `state`, if there is one.

    Raises:
        TrainingError: the checkpoint was written with other settings or another model, or is damaged.
    """
    path = newest_checkpoint(folder)
    if path is None:
        return
    try:
        saved = read_json(path / "state.json")
        wanted = as_json(settings)
        longer = wanted["lr_schedule"] == "constant" and wanted["steps"] >= saved["step"]
        changes = differing(saved["settings"], wanted, FREE_IN_RECOVERY | ({"steps"} if longer else frozenset()))
        if not changes:
            if state.pruning is not None:
                state.pruning.load_state_dict(saved["pruning"])
            _load(path, saved, state)
    except UNFIT as error:
        reason = first_line(error)
        raise TrainingError(f"{path} is damaged or does not fit this model: {reason}; use another folder") from error
    if changes:
        raise TrainingError(
            f"{path} was written with other settings ({say_differing(changes)}); use them, or another folder"
        )


def _load(path: Path, saved: dict[str, Any], state: TrainingState) -> None:
    state.model.load_state_dict(load_file(path / "model.safetensors"))
    state.ema.model.load_state_dict(load_file(path / "ema.safetensors"))
    moments = load_file(path / "optimizer.safetensors", device=str(device_of(state.model)))
    parameters = dict(state.model.named_parameters())
    for name, keys in saved["optimizer"].items():
        remembered = {key: of_pieces(f"{name}.{key}", moments, key not in SQUARES) for key in keys}
        for value in remembered.values():
            if value.ndim and not follows(plain(value), parameters[name]):
                raise ValueError(f"the optimizer's state of {name} has another shape")
        state.optimizer.state[parameters[name]] = remembered
    if state.scaler and saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    state.step, state.seconds = int(saved["step"]), float(saved["seconds"])
    state.jacobian_scale, state.balanced = float(saved["jacobian_scale"]), int(saved["balanced"])
    state.window = {name: (total, count) for name, (total, count) in saved["window"].items()}


def optimizer_tensors(state: TrainingState) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter name>.<key>`; for AdamW, exp_avg, exp_avg_sq and step.

    8-bit tensors are split into plain ones.
    """
    found: dict[str, Tensor] = {}
    for name, remembered in _by_name(state).items():
        for key, value in remembered.items():
            found |= pieces(f"{name}.{key}", value)
    return found


def _by_name(state: TrainingState) -> dict[str, Mapping[str, Tensor]]:
    named = state.model.named_parameters()
    return {name: state.optimizer.state[parameter] for name, parameter in named if parameter in state.optimizer.state}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}
