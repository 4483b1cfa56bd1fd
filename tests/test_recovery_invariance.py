"""Interruptions, processes and micro-batches do not change what a recovery learns."""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from models import dit, unet
from secateur.base.interrupts import Terminated, sigterm_raises
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import recover
from secateur.recovery.checkpoints import newest_checkpoint
from training_runs import CONFIG, TWO, Failing, assert_logs_agree, assert_same, images, log, options_of, smaller, start


@pytest.mark.parametrize("at", [1, 2, 4, 5])
def test_a_run_that_failed_resumes_to_the_bit(at, tmp_path):
    whole, process = dit(), FlowProcess()
    expected = recover(whole, process, images(), CONFIG, tmp_path / "whole")
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), process, Failing(at, OSError), CONFIG, tmp_path / "cut")
    resumed = dit()
    actual = recover(resumed, process, images(), CONFIG, tmp_path / "cut")
    assert_same(expected, actual)
    assert_same(whole, resumed)
    assert [record["step"] for record in log(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]
    assert [r["loss"] for r in log(tmp_path / "cut")] == [r["loss"] for r in log(tmp_path / "whole")]


def test_half_precision_goes_in_and_comes_out_and_resumes_to_the_bit(tmp_path):
    expected = recover(dit().bfloat16(), FlowProcess(), images(), CONFIG, tmp_path / "whole")
    assert {tensor.dtype for tensor in expected.state_dict().values()} == {torch.bfloat16}
    with pytest.raises(OSError, match=r"^$"):
        recover(dit().bfloat16(), FlowProcess(), Failing(5, OSError), CONFIG, tmp_path / "cut")
    assert_same(expected, recover(dit().bfloat16(), FlowProcess(), images(), CONFIG, tmp_path / "cut"))
    saved = load_file(newest_checkpoint(tmp_path / "cut") / "ema.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}  # steps are too small for half precision


def test_a_run_resumes_with_more_accumulation_than_it_began_with(tmp_path):
    config = replace(CONFIG, dropout=None)
    whole = recover(dit(), FlowProcess(), images(), config, tmp_path / "whole")
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), Failing(5, OSError), config, tmp_path / "cut")
    again = recover(dit(), FlowProcess(), images(), replace(config, accumulation=2), tmp_path / "cut")
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_ctrl_c_finishes_the_step_and_keeps_it(tmp_path):
    whole = recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "whole")
    config = replace(CONFIG, checkpoint_every=100)  # settings of what is written may differ
    with pytest.raises(KeyboardInterrupt):
        recover(unet(), DiffusionProcess(), Failing(3, signal.SIGINT), config, tmp_path / "cut")
    assert newest_checkpoint(tmp_path / "cut") is not None
    assert len(log(tmp_path / "cut")) < 6
    assert_same(whole, recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "cut"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_step_is_not_swallowed(tmp_path, number):
    whole = recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "whole")
    steps = []

    def hook(*_):
        steps.append(1)
        if len(steps) == CONFIG.steps:
            os.kill(os.getpid(), number)

    handle = register_optimizer_step_pre_hook(hook)
    try:
        with sigterm_raises(), pytest.raises((KeyboardInterrupt, Terminated)):
            recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "cut")
    finally:
        handle.remove()
    assert_same(whole, recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path / "cut"))


def test_a_finished_run_is_read_back(tmp_path):
    expected = recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    assert_same(expected, recover(unet(), DiffusionProcess(), images(), CONFIG, tmp_path))
    assert (tmp_path / "log.jsonl").read_text() == before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000006"]


@pytest.mark.parametrize(("objective", "accumulation"), [("denoising", 2), ("2ndmatch", 2), ("2ndmatch", 4)])
def test_micro_batches_equal_one_batch(objective, accumulation, tmp_path):
    config = replace(CONFIG, dropout=None, steps=3, objective=objective, **options_of(objective))
    recover(dit(), FlowProcess(), images(), config, tmp_path / "1", smaller())
    recover(dit(), FlowProcess(), images(), replace(config, accumulation=accumulation), tmp_path / "2", smaller())
    assert_logs_agree(tmp_path / "1", tmp_path / "2")


def test_tied_weights_resume_to_the_bit(tmp_path):
    def tied() -> nn.Module:
        first, second = (model := dit()).transformer_blocks[:2]
        second.ff.net[2].weight = first.ff.net[2].weight
        return model

    config = replace(CONFIG, steps=3, checkpoint_every=1)
    expected = recover(tied(), FlowProcess(), images(), config, tmp_path / "whole")
    with pytest.raises(OSError, match=r"^$"):
        recover(tied(), FlowProcess(), Failing(3, OSError), config, tmp_path / "cut")
    actual = recover(tied(), FlowProcess(), images(), config, tmp_path / "cut")
    assert_same(expected, actual)
    first, second = actual.transformer_blocks[:2]
    assert first.ff.net[2].weight is second.ff.net[2].weight


# ------------------------------------------------------------------------------------------- other processes


SCRIPT = """
import sys
import torch
from dataclasses import replace
from models import dit
from secateur.process.flow import FlowProcess
from secateur.recovery import recover
from training_runs import CONFIG, images, options_of, smaller
torch.set_num_threads(1)
config = replace(CONFIG, steps=int(sys.argv[2]), dropout=None, objective=sys.argv[3], **options_of(sys.argv[3]))
recover(dit(), FlowProcess(), images(), config, sys.argv[1], smaller())
"""


def train(folder: Path, steps: int, objective: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    return start(folder.with_suffix(".py"), SCRIPT, folder, steps, objective, launcher=launcher)


@pytest.mark.parametrize(
    "kills", [pytest.param((120,), marks=pytest.mark.slow), pytest.param((5, 120, 250), marks=pytest.mark.torture)]
)
def test_a_killed_run_resumes_to_the_bit(kills, tmp_path):
    assert train(tmp_path / "whole", 400, "denoising").wait() == 0
    for lines in kills:
        run = train(tmp_path / "cut", 400, "denoising")
        text = tmp_path / "cut" / "log.jsonl"
        while run.poll() is None and not (text.exists() and text.read_text().count("\n") > lines):
            time.sleep(0.002)
        run.kill()
        run.wait()
    assert len(log(tmp_path / "cut")) < 400
    assert train(tmp_path / "cut", 400, "denoising").wait() == 0
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, other = (newest_checkpoint(tmp_path / run) / name for run in ("whole", "cut"))
        assert one.read_bytes() == other.read_bytes()
    assert [record["step"] for record in log(tmp_path / "cut")] == list(range(1, 401))


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["denoising", pytest.param("2ndmatch", marks=pytest.mark.torture)])
def test_two_processes_equal_one(objective, tmp_path):
    assert train(tmp_path / "one", 5, objective).wait() == 0
    assert train(tmp_path / "two", 5, objective, launcher=TWO).wait() == 0
    assert_logs_agree(tmp_path / "one", tmp_path / "two")
