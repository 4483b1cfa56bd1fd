"""Compensation at the cuts of the progressive and the adaptive schedule, and in other training loops."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers.training_utils import EMAModel

import secateur
from adaptive_runs import CONFIG as ADAPTIVE
from adaptive_runs import adaptive, sit
from loop_runs import pruning_of
from models import dit, output, unet
from progressive_runs import CONFIG, calibration, pruner_for
from secateur.base.errors import TrainingError
from secateur.compensation import CompensationConfig, compensate
from secateur.io.manifest import apply_cut, manifest_of
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import AttachedPruner, Ema, RecoveryConfig, recover
from secateur.results import read_decisions
from secateur.schedules import Compensating
from secateur.schedules.pruning import OneShot
from secateur.structure import Cut
from training_runs import Failing, assert_same, images, stage_log

REFIT = CompensationConfig(num_tuples=8, rows=500)


def refitting(pruner, dense, process):
    compensating = Compensating(copy.deepcopy(dense).eval(), calibration(dense), REFIT, {})
    return replace(pruner, refit=partial(compensating.refit, process))


def kinds(model):
    return [step["kind"] for step in manifest_of(model).steps]


def test_remaining_layers_are_refitted_to_the_dense_model_when_units_are_removed():
    dense, process = unet(), DiffusionProcess()
    plain, refitted, again = (copy.deepcopy(dense) for _ in range(3))
    expected = output(dense)
    pruner = refitting(pruner_for(dense, process), dense, process)
    average = Ema(refitted)
    attached = AttachedPruner(pruner, refitted, average=average)
    for each in (AttachedPruner(replace(pruner, refit=None), plain), attached):
        while not each.cuts:
            each.step()
    (record,) = [record for record in attached.records if "refit" in record]
    assert record["removed"]
    assert record["refit"]["after"] < 0.7 * record["refit"]["before"]
    errors = [(output(model) - expected).square().mean() for model in (plain, refitted)]
    assert errors[1] < errors[0]
    assert_same(average.model, refitted)
    assert kinds(refitted) == kinds(average.model) == ["cut", "compensation"]
    taken_up = AttachedPruner(pruner, again, average=Ema(again))
    taken_up.load_state_dict(attached.state_dict())
    assert kinds(again) == kinds(taken_up.average.model) == ["cut", "compensation"]


@pytest.mark.slow
def test_a_progressive_run_that_failed_resumes_to_the_bit(tmp_path):
    process = DiffusionProcess()
    pruner = refitting(pruner_for(unet(), process), unet(), process)
    expected = recover(unet(), process, images(), CONFIG, tmp_path / "whole", pruner=pruner)
    with pytest.raises(OSError, match=r"^$"):
        recover(unet(), process, Failing(6, OSError), CONFIG, tmp_path / "cut", pruner=pruner)
    found = recover(unet(), process, images(), CONFIG, tmp_path / "cut", pruner=pruner)
    assert_same(expected, found)
    assert kinds(expected) == kinds(found) == ["cut", "compensation"]
    assert stage_log(tmp_path / "whole") == stage_log(tmp_path / "cut")


@pytest.mark.slow
def test_every_removal_of_a_block_is_compensated(tmp_path):
    dense, process = sit(), FlowProcess()
    pruner = refitting(adaptive(dense, steps=ADAPTIVE.steps), dense, process)
    recovered = recover(sit(), process, images(), ADAPTIVE, tmp_path, pruner=pruner)
    decisions = read_decisions(tmp_path / "stages.jsonl")
    refits = [stage.refit for stage in decisions.blocks if stage.removed]
    assert len(refits) > 1
    assert all(refit.after < refit.before for refit in refits)
    assert [stage.refit for stage in decisions.blocks if not stage.removed] == [None] * (4 - len(refits))
    assert kinds(recovered) == ["cut", "compensation"] * len(refits)
    assert len(decisions.sentences()) == len(refits)


def test_a_users_own_loop_keeps_the_dense_model_for_the_refit():
    model = unet()
    ema = EMAModel(model.parameters(), decay=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    pruning = pruning_of(model, optimizer, ema, compensation=REFIT)
    while not pruning.step():
        pass
    assert pruning.records[-1]["refit"]["after"] < pruning.records[-1]["refit"]["before"]
    for shadow, parameter in zip(ema.shadow_params, model.parameters(), strict=True):
        assert torch.equal(shadow, parameter)
    other = pruning_of(unet())
    with pytest.raises(secateur.SecateurError, match="compensation"):
        other.load_state_dict(pruning.state_dict())


def test_a_refit_that_drops_conditions_needs_a_null_class_before_the_loop_begins():
    with pytest.raises(secateur.SecateurError, match="null condition in place of others, and this model has none"):
        pruning_of(unet(), compensation=replace(REFIT, condition_dropout=0.1))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["progressive", "adaptive"])
def test_compress_refits_at_the_cuts_of_every_schedule(schedule, tmp_path):
    run = secateur.compress(
        sit(),
        target="macs=70%",
        data=images(),
        process="flow",
        recipe="diff-pruning",
        criterion="magnitude",
        schedule=schedule,
        cut=secateur.CutConfig(granularity="depth"),
        progressive=secateur.ProgressiveConfig(stages=2, decay_stages=2, stage_steps=1),
        adaptive=secateur.AdaptiveConfig(stages=2, until=0.5, selector="fixed"),
        recovery=ADAPTIVE,
        compensates=True,
        compensation=REFIT,
        evaluation=secateur.EvaluationConfig(metrics=("loss",), num_images=4, num_inference_steps=2),
        out=tmp_path / "run",
    )
    assert run.decisions.sentences()
    assert "refitting took the error" in " ".join(run.sentences)
    assert "compensation" in kinds(run.model)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_refit_beside_a_live_teacher_is_exact_in_mixed_precision(precision, tmp_path):
    dense, process = dit(), FlowProcess()
    student, structure = copy.deepcopy(dense), describe(dense)
    halves = {name: tuple(range(dim.size // 2)) for name, dim in structure.dims.items() if name.endswith(".ff")}
    compensating = Compensating(dense, calibration(dense), REFIT, {})
    pruner = OneShot(Cut(halves), {}, {}, "", partial(compensating.refit, process))
    recovery = RecoveryConfig(
        steps=1, batch_size=4, learning_rate=1e-9, objective="distillation", mixed_precision=precision
    )
    recover(student, process, images(), recovery, tmp_path, dense, pruner)
    (record,) = (record for record in stage_log(tmp_path) if "refit" in record)
    assert record["refit"]["after"] < 0.5 * record["refit"]["before"]
    expected = compensate(apply_cut(copy.deepcopy(dense), Cut(halves)), dense, process, calibration(dense), REFIT)
    assert record["refit"]["after"] == pytest.approx(expected.after, rel=1e-3)


def test_a_refit_at_a_cut_needs_its_teacher_on_the_device(tmp_path):
    dense, process = dit(), FlowProcess()
    compensating = Compensating(dense, calibration(dense), REFIT, {})
    pruner = OneShot(Cut({}), {}, {}, "", partial(compensating.refit, process))
    recovery = RecoveryConfig(steps=1, batch_size=4, objective="distillation", offload=("teacher",))
    with pytest.raises(TrainingError, match=r"leave teacher out of recovery\.offload"):
        recover(copy.deepcopy(dense), process, images(), recovery, tmp_path, dense, pruner)
