"""A progressive run ends the same if it is resumed, killed, or divided into micro-batches or processes."""

import json
import signal
import time
from dataclasses import replace

import pytest

from models import dit, unet
from progressive_runs import (
    CONFIG,
    LONGER,
    SCORING,
    apart,
    calibration,
    pruner_for,
    run,
)
from secateur.base.errors import TrainingError
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import JacobianConfig, recover
from secateur.recovery.checkpoints import newest_checkpoint
from secateur.schedules import ProgressiveConfig, stage_scorer
from training_runs import BALANCED, TWO, Failing, assert_logs_agree, assert_same, images, log, smaller, stage_log, start

# -------------------------------------------------------------------------------------------------- resume


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return *run(folder), folder


def assert_equals_whole(found, folder, whole):
    for one, other in zip(found, whole[:2], strict=True):
        assert_same(one, other)
        assert set(one.state_dict()) == set(other.state_dict())
    assert [record["loss"] for record in log(folder)] == [record["loss"] for record in log(whole[2])]
    assert stage_log(folder) == stage_log(whole[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failures", "every"), [([1], 1), ([4], 1), ([6], 2), ([7], 1), ([8, 2], 1), ([8], 5), ([9], 4)]
)
def test_a_run_that_failed_resumes_to_the_bit(failures, every, whole, tmp_path):
    """It fails before one of its steps, counted from 1: before, between, at and after the stages."""
    config = replace(LONGER, checkpoint_every=every)
    for at in failures:
        with pytest.raises(OSError, match=r"^$"):
            run(tmp_path, Failing(at, OSError), config)
    path = tmp_path / "log.jsonl"
    assert path.exists() == (failures != [1])
    assert not path.exists() or len(log(tmp_path)) == sum(failures) - len(failures)
    assert_equals_whole(run(tmp_path, config=config), tmp_path, whole)
    assert [(record["stage"], record["step"]) for record in stage_log(tmp_path)] == [(1, 0), (2, 2), (3, 4), (4, 6)]


@pytest.mark.slow
def test_a_decision_is_kept_at_once(whole, tmp_path):
    pruner, calls = apart(), []

    def counted(model):
        calls.append(model)
        return pruner.scorer(model)

    config = replace(LONGER, checkpoint_every=100)
    with pytest.raises(OSError, match=r"^$"):
        run(tmp_path, Failing(6, OSError), config, replace(pruner, scorer=counted))  # a step after stage 3
    assert newest_checkpoint(tmp_path).name == "step-00000005"
    assert len(calls) == 2
    assert_equals_whole(run(tmp_path, None, config, replace(pruner, scorer=counted)), tmp_path, whole)
    assert len(calls) == 2  # both stages that score were kept


@pytest.mark.slow
def test_automatic_weight_starts_over_after_the_cut_and_survives_a_resume(tmp_path):
    jacobian = JacobianConfig(auto_weight=True)
    options = {"objective": "2ndmatch", "weights": {"jacobian": 1e6}, "jacobian": jacobian, "dropout": None}
    config = replace(LONGER, **options)
    expected = run(tmp_path / "whole", config=config, teacher=dit())
    for record in log(tmp_path / "whole"):
        norms = [record[f"grad_norm_{term}"] for term in ("denoising", "distillation", "jacobian")]
        assert norms[2] <= norms[0] + norms[1]
    with pytest.raises(OSError, match=r"^$"):
        run(tmp_path / "cut", Failing(9, OSError), config, teacher=dit())
    assert json.loads((newest_checkpoint(tmp_path / "cut") / "state.json").read_text())["balanced"] == 2
    found = run(tmp_path / "cut", config=config, teacher=dit())
    for one, other in zip(expected, found, strict=True):
        assert_same(one, other)


def test_a_run_that_failed_while_scoring_resumes_to_the_bit(whole, tmp_path):
    pruner, calls = apart(), []

    def failing(model):
        calls.append(model)
        if len(calls) == 2:
            raise OSError
        return pruner.scorer(model)

    with pytest.raises(OSError, match=r"^$"):
        run(tmp_path, pruner=replace(pruner, scorer=failing), config=replace(LONGER, checkpoint_every=1))
    assert_equals_whole(run(tmp_path), tmp_path, whole)


def test_a_finished_run_is_read_back(whole):
    assert_equals_whole(run(whole[2], Failing(2, OSError)), whole[2], whole)


@pytest.mark.slow
def test_coarse_scores_survive_a_resume(tmp_path):
    coarse = ProgressiveConfig(stages=4, decay_stages=1, stage_steps=1, coarse=True)
    pruner = pruner_for(unet(), DiffusionProcess(), criterion="gradient-flow", config=coarse)
    pruner = replace(pruner, scorer=stage_scorer(DiffusionProcess(), calibration(unet()), "gradient-flow", SCORING))
    arguments = replace(CONFIG, checkpoint_every=1), pruner, None, unet, DiffusionProcess()
    expected = *run(tmp_path / "whole", None, *arguments), tmp_path / "whole"
    for at in (2, 2):  # before the second stage, which has no scores of its own, and before the third
        with pytest.raises(OSError, match=r"^$"):
            run(tmp_path / "cut", Failing(at, OSError), *arguments)
    assert_equals_whole(run(tmp_path / "cut", None, *arguments), tmp_path / "cut", expected)
    assert ["energy" in record for record in stage_log(tmp_path / "cut")] == [True, True, False, True, False]


def test_other_progressive_settings_are_refused_in_one_line(whole):
    with pytest.raises(TrainingError, match=r"other settings \(pruner\.stage_steps 2 there, 1 here\)") as caught:
        run(whole[2], pruner=apart(stage_steps=1))
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match=r"\(pruner .* there, None here\)"):
        recover(dit(), FlowProcess(), images(), LONGER, whole[2])


def test_runs_without_a_pruner_have_no_stages(tmp_path):
    recover(dit(), FlowProcess(), images(), replace(CONFIG, steps=1), tmp_path)
    assert not (tmp_path / "stages.jsonl").exists()


# ---------------------------------------------------------------------------------------- ways of training


@pytest.mark.slow
def test_two_micro_batches_equal_one(tmp_path):
    config = replace(LONGER, steps=8, objective="2ndmatch", dropout=None, **BALANCED)
    run(tmp_path / "1", config=config, teacher=smaller())
    run(tmp_path / "2", config=replace(config, accumulation=2), teacher=smaller())
    assert_logs_agree(tmp_path / "1", tmp_path / "2", rel=1e-3)


def test_gradient_checkpointing_changes_nothing(whole, tmp_path):
    model = dit()
    model.enable_gradient_checkpointing()
    assert_same(whole[1], recover(model, FlowProcess(), images(), LONGER, tmp_path, pruner=apart()))


# ----------------------------------------------------------------------------------------- other processes


SCRIPT = """
import sys
import torch
from dataclasses import replace
from progressive_runs import BOTH, CONFIG, pruner_for, run
from secateur.process.flow import FlowProcess
from secateur.schedules import ProgressiveConfig
from models import dit
from training_runs import Failing, images
torch.set_num_threads(1)
folder, steps, stage_steps, fail_at = sys.argv[1], *map(int, sys.argv[2:])
stages = ProgressiveConfig(stages=3, decay_stages=2, stage_steps=stage_steps)
pruner = pruner_for(dit(), FlowProcess(), "macs=45%", "taylor", BOTH, stages)
run(folder, Failing(fail_at, OSError) if fail_at else images(), replace(CONFIG, steps=steps), pruner)
"""


def train(folder, steps, stage_steps, fail_at=0, launcher=()):
    return start(folder.with_suffix(".py"), SCRIPT, folder, steps, stage_steps, fail_at, launcher=launcher)


def assert_same_checkpoints(one, other):
    for name in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        assert (newest_checkpoint(one) / name).read_bytes() == (newest_checkpoint(other) / name).read_bytes()
    assert stage_log(one) == stage_log(other)


@pytest.mark.torture
@pytest.mark.parametrize("kills", [(60, 110), (5, 60, 110, 150)])
def test_a_killed_run_resumes_to_the_bit(kills, tmp_path):
    assert train(tmp_path / "whole", 200, 25).wait() == 0
    for lines in kills:  # units are removed before step 100
        killed = train(tmp_path / "cut", 200, 25)
        text = tmp_path / "cut" / "log.jsonl"
        while killed.poll() is None and not (text.exists() and text.read_text().count("\n") > lines):
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert len(log(tmp_path / "cut")) < 200
    assert train(tmp_path / "cut", 200, 25).wait() == 0
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "cut")
    assert [record["step"] for record in log(tmp_path / "cut")] == list(range(1, 201))


@pytest.mark.torture
def test_two_processes_equal_one_and_resume_to_the_bit(tmp_path):
    assert train(tmp_path / "one", 8, 1).wait() == 0
    assert train(tmp_path / "two", 8, 1, launcher=TWO).wait() == 0
    assert_logs_agree(tmp_path / "one", tmp_path / "two", rel=1e-3)
    for single, joined in zip(stage_log(tmp_path / "one"), stage_log(tmp_path / "two"), strict=True):
        assert single["masks"] == joined["masks"]
        units, others = ({name: new["units"] for name, new in stage["added"].items()} for stage in (single, joined))
        assert units == others
    assert train(tmp_path / "cut", 8, 1, fail_at=8, launcher=TWO).wait() != 0
    assert 4 < int(newest_checkpoint(tmp_path / "cut").name[-8:]) < 8  # units were removed before step 5
    assert train(tmp_path / "cut", 8, 1, launcher=TWO).wait() == 0
    assert_same_checkpoints(tmp_path / "two", tmp_path / "cut")
