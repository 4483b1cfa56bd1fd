"""Checkpoints of a recovery run: safetensors and JSON; there is always a complete one on disk.

`<folder>/checkpoints/step-000500/` holds `model.safetensors`, `ema.safetensors`, `optimizer.safetensors` and
`state.json`; of a sharded run, `shards/` in place of the first three, into which each process writes its part. Either
is read by a run of any kind. The optimizer's state is stored by parameter name, and cut with the parameters.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..base.distributed import from_main, is_main_process
from ..base.errors import SecateurError, TrainingError, first_line
from ..base.files import atomic_folder, read_json, write_json
from ..base.settings import FREE_IN_RECOVERY, as_json, differing, say_differing
from ..models.network import device_of
from .ema import Ema
from .log import Window
from .pruner import AttachedPruner
from .quantized import of_pieces, pieces, plain
from .shard_files import described, read_shards, write_shards
from .surgery import SQUARES, follows

SHARDS = "shards"
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


def save_checkpoint(
    folder: str | Path, state: TrainingState, settings: Mapping[str, Any], in_shards: bool = False
) -> Path:
    """Write the checkpoint of `state`, then remove older ones and leftovers of killed runs.

    `settings` must be the same in a run that resumes from it. With `in_shards` every process must call this, with its
    shards.

    Raises:
        SecateurError: the disk is full, or the folder cannot be written; the older checkpoint is kept.
    """
    path = Path(folder) / "checkpoints" / f"step-{state.step:08d}"
    if in_shards and not is_main_process():
        write_shards(all_tensors(state), from_main(Path))
        return path
    with atomic_folder(path) as temporary:
        if in_shards:
            write_shards(all_tensors(state), from_main(lambda: temporary / SHARDS))
        else:
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


def restore_checkpoint(
    folder: str | Path, state: TrainingState, settings: Mapping[str, Any], to_shards: bool = False
) -> Path | None:
    """Load the newest checkpoint in `folder` into `state`, if there is one.

    Shards for a run `to_shards` are left for `restore_shards`, once its model is sharded; the result is their
    checkpoint.

    Raises:
        TrainingError: the checkpoint was written with other settings or another model, or is damaged.
    """
    path = newest_checkpoint(folder)
    if path is None:
        return None
    with _fitting(path):
        saved = read_json(path / "state.json")
        wanted = as_json(settings)
        longer = wanted["lr_schedule"] == "constant" and wanted["steps"] >= saved["step"]
        changes = differing(saved["settings"], wanted, FREE_IN_RECOVERY | ({"steps"} if longer else frozenset()))
        in_shards = (path / SHARDS).is_dir()
        if not changes:
            if state.pruning is not None:
                state.pruning.load_state_dict(saved["pruning"])
            if not in_shards:
                _load(path, saved, state)
            elif not to_shards:
                _fill(path, saved, state)
            _take_numbers(saved, state)
    if changes:
        raise TrainingError(
            f"{path} was written with other settings ({say_differing(changes)}); use them, or another folder"
        )
    return path if in_shards and to_shards else None


def restore_shards(path: Path, state: TrainingState) -> None:
    """Load the checkpoint `path` into the shards of `state`; every process must call this.

    Raises:
        TrainingError: it is damaged or of another model.
    """
    with _fitting(path):
        _fill(path, read_json(path / "state.json"), state)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    try:
        yield
    except UNFIT as error:
        reason = first_line(error)
        raise TrainingError(f"{path} is damaged or does not fit this model: {reason}; use another folder") from error


def _load(path: Path, saved: dict[str, Any], state: TrainingState) -> None:
    state.model.load_state_dict(load_file(path / "model.safetensors"))
    state.ema.model.load_state_dict(load_file(path / "ema.safetensors"))
    moments = load_file(path / "optimizer.safetensors", device=str(device_of(state.model)))
    parameters = dict(state.model.named_parameters())
    on_device = state.optimizer.defaults.get("fused")  # then the step counter is where the weights are
    for name, keys in saved["optimizer"].items():
        remembered = {key: of_pieces(f"{name}.{key}", moments, key not in SQUARES) for key in keys}
        if "step" in remembered and not on_device:  # others read it on the CPU: from a GPU they would wait for it
            remembered["step"] = remembered["step"].cpu()
        for value in remembered.values():
            if value.ndim and not follows(plain(value), parameters[name]):
                raise ValueError(f"the optimizer's state of {name} has another shape")
        state.optimizer.state[parameters[name]] = remembered


def _fill(path: Path, saved: dict[str, Any], state: TrainingState) -> None:
    """As `_load`, from shards; of weights that are sharded, each process reads its part."""
    stored, parameters = described(path / SHARDS), dict(state.model.named_parameters())
    on_device = state.optimizer.defaults.get("fused")  # then the step counter is where the weights are
    for name, keys in saved["optimizer"].items():
        parameter, remembered = parameters[name].detach(), {}
        for key in keys:
            size, dtype = stored[f"optimizer.{name}.{key}"]
            like = size == parameter.shape and len(size) > 0
            place = parameter.device if on_device else "cpu"
            remembered[key] = (
                torch.empty_like(parameter, dtype=dtype) if like else torch.empty(size, dtype=dtype, device=place)
            )
        state.optimizer.state[parameters[name]] = remembered
    read_shards(all_tensors(state), path / SHARDS)


def _take_numbers(saved: dict[str, Any], state: TrainingState) -> None:
    if state.scaler and saved["scaler"]:
        state.scaler.load_state_dict(saved["scaler"])
    state.step, state.seconds = int(saved["step"]), float(saved["seconds"])
    state.jacobian_scale, state.balanced = float(saved["jacobian_scale"]), int(saved["balanced"])
    state.window = {name: (total, count) for name, (total, count) in saved["window"].items()}


def all_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Weights, averages and the optimizer's state under one name each, sharded ones as shards."""
    return {
        **{f"model.{name}": value for name, value in state.model.state_dict().items()},
        **{f"ema.{name}": value for name, value in state.ema.model.state_dict().items()},
        **{f"optimizer.{name}": value for name, value in optimizer_tensors(state).items()},
    }


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
    """The tensors, contiguous and each in memory of its own, as safetensors wants them: tied weights are copied."""
    apart: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone(memory_format=torch.contiguous_format) if place in places else tensor.contiguous()
        places.add(place)
    return apart
