"""The log of a recovery, and the automatic weight in it."""

import json
import math
import signal
from dataclasses import replace

import pytest

from models import dit, unet
from secateur.base.errors import TrainingError
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import OBJECTIVES, JacobianConfig, Objective, parallel, recover, step
from secateur.recovery.balance import norm
from secateur.recovery.checkpoints import newest_checkpoint
from secateur.recovery.objectives.denoising import denoising_terms
from training_runs import BALANCED, CONFIG, Failing, assert_logs_agree, assert_same, images, log, smaller


def test_gradient_norms_of_the_terms_are_logged(caplog, tmp_path):
    config = replace(CONFIG, objective="2ndmatch", grad_norms_every=3, dropout=None)
    recover(dit(), FlowProcess(), images(), config, tmp_path, smaller())
    terms = ("denoising", "distillation", "jacobian")
    measured = [record for record in log(tmp_path) if "grad_norm_jacobian" in record]
    assert [record["step"] for record in measured] == [3, 6]
    assert all(record[f"grad_norm_{term}"] > 0 for record in measured for term in terms)
    assert "fused kernels have no second derivative" in caplog.text


def test_norms_of_a_term_that_is_in_some_steps_only_are_measured_there(tmp_path):
    jacobian = JacobianConfig(every_n=3)
    config = replace(CONFIG, objective="2ndmatch", steps=12, grad_norms_every=4, log_every=100, jacobian=jacobian)
    recover(dit(), FlowProcess(), images(), config, tmp_path, smaller())
    assert [record["step"] for record in log(tmp_path)] == [6, 9, 12]  # the first of every third step after 4, 8 and 12
    assert all("grad_norm_jacobian" in record and "jacobian" in record for record in log(tmp_path))


def test_lines_of_the_log_are_means_and_survive_a_resume(tmp_path):
    jacobian = JacobianConfig(every_n=2)
    options = {"objective": "2ndmatch", "grad_norms_every": 0, "jacobian": jacobian, "checkpoint_every": 1}
    config = replace(CONFIG, steps=6, **options)
    recover(dit(), FlowProcess(), images(), config, tmp_path / "each", smaller())
    each = log(tmp_path / "each")
    rare = replace(config, log_every=3)
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), Failing(3, OSError), rare, tmp_path / "rare", smaller())
    recover(dit(), FlowProcess(), images(), rare, tmp_path / "rare", smaller())
    for line, steps in zip(log(tmp_path / "rare"), (each[:3], each[3:]), strict=True):
        assert line["step"] == steps[-1]["step"]
        for name in ("loss", "denoising", "jacobian", "grad_norm"):
            values = [step[name] for step in steps if name in step]
            assert line[name] == pytest.approx(sum(values) / len(values), rel=1e-9), name


def test_a_jacobian_term_that_no_step_would_have_is_refused(tmp_path):
    config = replace(CONFIG, objective="2ndmatch", steps=4, jacobian=JacobianConfig(every_n=5))
    with pytest.raises(TrainingError, match=r"in one step of 5, and there are 4; give more steps, or a smaller"):
        recover(dit(), FlowProcess(), images(), config, tmp_path, smaller())


def test_an_overflow_does_not_change_the_balance(monkeypatch, tmp_path):
    """A norm that is not finite must not switch the term off permanently."""
    measured = []

    def once(gradient):
        measured.append(norm(gradient))
        return math.inf if len(measured) == 1 else measured[-1]

    monkeypatch.setattr(parallel, "norm", once)
    config = replace(CONFIG, objective="2ndmatch", steps=3, **BALANCED)
    recover(dit(), FlowProcess(), images(), config, tmp_path, smaller())
    assert [record["jacobian_weight"] == 1e6 for record in log(tmp_path)] == [True, False, False]
    assert ["grad_norm_jacobian" in record for record in log(tmp_path)] == [False, True, True]


def test_a_term_without_weight_is_not_balanced(tmp_path):
    jacobian = JacobianConfig(auto_weight=True)
    config = replace(CONFIG, objective="2ndmatch", weights={"jacobian": 0.0}, jacobian=jacobian, grad_norms_every=0)
    recover(dit(), FlowProcess(), images(), config, tmp_path, smaller())
    assert not any("grad_norm_jacobian" in record or "jacobian_weight" in record for record in log(tmp_path))


def test_measured_gradient_norms_are_logged_whatever_the_steps_between_lines(tmp_path):
    config = replace(CONFIG, objective="distillation", grad_norms_every=3, log_every=4)
    recover(dit(), FlowProcess(), images(), config, tmp_path, smaller())
    assert [(record["step"], "grad_norm_denoising" in record) for record in log(tmp_path)] == [
        *[(3, True), (4, False), (6, True)]
    ]


@pytest.mark.slow
def test_automatic_weight_balances_the_gradients_and_survives_a_resume(tmp_path):
    options = {"objective": "2ndmatch", "grad_norms_every": 0, "dropout": None, "weights": {"jacobian": 1e6}}
    config = replace(CONFIG, jacobian=JacobianConfig(auto_weight=True), **options)
    whole = recover(dit(), FlowProcess(), images(), config, tmp_path / "whole", smaller())
    for record in log(tmp_path / "whole"):
        norms = [record[f"grad_norm_{term}"] for term in ("denoising", "distillation", "jacobian")]
        assert norms[2] <= norms[0] + norms[1]
        assert record["loss"] < 100
        assert record["jacobian_weight"] < 1e6
    with pytest.raises(OSError, match=r"^$"):
        recover(dit(), FlowProcess(), Failing(5, OSError), config, tmp_path / "cut", smaller())
    assert_same(whole, recover(dit(), FlowProcess(), images(), config, tmp_path / "cut", smaller()))


@pytest.mark.parametrize(("others", "jacobian", "balanced"), [(1.0, 0.0, 0), (0.0, 1.0, 0), (1.0, 1.0, 2)])
def test_automatic_weight_waits_for_something_to_balance(others, jacobian, balanced, monkeypatch, tmp_path):
    def terms(student, teacher, process, draw, config):
        error = denoising_terms(student, teacher, process, draw, config)["denoising"]
        return {"denoising": others * error, "jacobian": jacobian * 9 * error}

    objective = Objective("mine", terms, {"denoising": 1.0, "jacobian": 1.0}, terms_without_jacobian=denoising_terms)
    monkeypatch.setitem(OBJECTIVES, "mine", objective)
    config = replace(CONFIG, objective="mine", steps=2, jacobian=JacobianConfig(auto_weight=True))
    recover(unet(), DiffusionProcess(), images(), config, tmp_path)
    state = json.loads((newest_checkpoint(tmp_path) / "state.json").read_text())
    assert state["balanced"] == balanced
    assert state["jacobian_scale"] == pytest.approx(1 / 9 if balanced else 1)


@pytest.mark.slow
def test_steps_that_are_read_late_say_and_keep_the_same(monkeypatch, tmp_path):
    """As on a GPU, where the values of a step are read while the next step runs."""
    config = replace(CONFIG, checkpoint_every=4, log_every=3)
    expected = recover(unet(), DiffusionProcess(), images(), config, tmp_path / "at once")
    monkeypatch.setattr(step, "runs_asynchronously", lambda device: True)
    assert_same(expected, recover(unet(), DiffusionProcess(), images(), config, tmp_path / "late"))
    assert_logs_agree(tmp_path / "at once", tmp_path / "late", rel=0)
    with pytest.raises(KeyboardInterrupt):
        recover(unet(), DiffusionProcess(), Failing(3, signal.SIGINT), config, tmp_path / "stopped")
    assert 1 <= int(newest_checkpoint(tmp_path / "stopped").name[-1]) < 6
    assert_same(expected, recover(unet(), DiffusionProcess(), images(), config, tmp_path / "stopped"))
    assert_logs_agree(tmp_path / "at once", tmp_path / "stopped", rel=0)
    broken = images()
    broken.images[:] = float("nan")
    with pytest.raises(TrainingError, match=r"diverged at step 1 .*not yet written"):
        recover(unet(), DiffusionProcess(), broken, config, tmp_path / "broken")


def test_the_log_says_what_memory_it_took(tmp_path):
    recover(unet(), DiffusionProcess(), images(), replace(CONFIG, steps=2), tmp_path)
    assert all(0 < record["peak_gib"] < 1000 for record in log(tmp_path))
