"""Checkpoints of a recovery that are torn, damaged, or of another run."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import dit, unet
from secateur.base.errors import TrainingError
from secateur.process.diffusion import DiffusionProcess
from secateur.recovery import recover
from secateur.recovery.agreement import check_step
from secateur.recovery.checkpoints import newest_checkpoint
from secateur.recovery.log import cut_log
from training_runs import CONFIG, images


@pytest.mark.parametrize("torn", ['{"step": 5, "loss": 0.', '{"step": 5, "inner": {"a": 1}'])
def test_a_line_that_was_not_written_whole_is_dropped(torn, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 3}\n{"step": 4}\n' + torn)
    cut_log(path, 3)
    assert path.read_text() == '{"step": 3}\n'
    path.write_text(torn)
    cut_log(path, 3)
    assert path.read_text() == ""


def test_processes_that_find_different_checkpoints_are_refused(tmp_path):
    accelerator = SimpleNamespace(device="cpu", gather=lambda own: torch.cat([own, own - own]))
    with pytest.raises(TrainingError, match=r"different checkpoints .*\(process 0 2, process 1 0\)"):
        check_step(accelerator, tmp_path, 2)
    check_step(accelerator, tmp_path, 0)


def test_another_config_data_or_model_is_refused(tmp_path):
    recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="seed 0 there, 1 here"):
        recover(unet(), DiffusionProcess(), images(), replace(CONFIG, seed=1), tmp_path)
    fewer = replace(images(), images=images().images[:5], labels=None)
    with pytest.raises(TrainingError, match="5 images"):
        recover(unet(), DiffusionProcess(), fewer, CONFIG, tmp_path)
    with pytest.raises(TrainingError, match="does not fit this model"):
        recover(dit(), DiffusionProcess(), images(), CONFIG, tmp_path)


def edit_state(change):
    """A function that changes `state.json` in a checkpoint."""

    def edit(checkpoint: Path) -> None:
        path = checkpoint / "state.json"
        state = json.loads(path.read_text())
        change(state)
        path.write_text(json.dumps(state))

    return edit


def rename_moments(old: str, new: str):
    """A function that renames what Adam remembers in a checkpoint."""

    def edit(checkpoint: Path) -> None:
        path = checkpoint / "optimizer.safetensors"
        save_file({key.replace(old, new): value for key, value in load_file(path).items()}, path)

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda checkpoint: (checkpoint / "state.json").write_text("{"), "damaged"),
        (lambda checkpoint: (checkpoint / "state.json").write_text("[]"), "damaged"),
        (lambda checkpoint: (checkpoint / "state.json").unlink(), "damaged"),
        (lambda checkpoint: (checkpoint / "ema.safetensors").write_bytes(b"no"), "damaged"),
        (edit_state(lambda state: state.pop("settings")), "damaged"),
        (edit_state(lambda state: state.update(settings=None)), "damaged"),
        (edit_state(lambda state: state.pop("step")), "damaged"),
        (rename_moments("conv_in.", "conv_none."), "damaged"),
        (rename_moments("exp_avg_sq", "exp_avg_cube"), "damaged"),
        (rename_moments("conv_in.bias", "conv_out.bias.bias"), "damaged"),
    ],
)
def test_damaged_checkpoints_are_refused(damage, message, tmp_path):
    recover(unet(), DiffusionProcess(), images(), replace(CONFIG, steps=2), tmp_path)
    damage(newest_checkpoint(tmp_path))
    with pytest.raises(TrainingError, match=message) as raised:
        recover(unet(), DiffusionProcess(), images(), replace(CONFIG, steps=2), tmp_path)
    assert "\n" not in str(raised.value)
