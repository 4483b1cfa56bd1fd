"""A compression of objects in memory: the run that it gives, and its folder."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

import secateur
from api_runs import EVALUATION, IMAGES, RECOVERY, SCORING, nothing_is_written, parameters
from models import output, unet
from secateur.reporting import read_run

_nothing_is_written = pytest.fixture(nothing_is_written, autouse=True)


def test_a_pipeline_gives_a_run_with_a_pipeline(tmp_path):
    pipeline = DDPMPipeline(unet(), DDPMScheduler())
    run = secateur.compress(
        pipeline, target="macs=60%", data=IMAGES, scoring=SCORING, recovery=RECOVERY, evaluation=EVALUATION
    )
    assert parameters(run.model) < parameters(pipeline.unet) == parameters(unet())
    assert run.pipeline.unet is run.model
    assert run.pipeline is not pipeline
    assert run.cut.after.macs <= 0.6 * run.cut.before.macs
    assert run.ranking.dims
    assert (run.ranking.criterion, run.cut.allocation) == ("magnitude", "local")  # what auto chose for a U-Net
    assert list(run.evaluation.models) == ["dense", "pruned", "compensated", "recovered"]
    assert "Asked for macs=60%" in str(run)
    assert "<table" in run._repr_html_()
    with pytest.raises(ValueError, match="folder"):
        run.report()


@pytest.mark.slow
def test_a_run_in_memory_is_saved_and_loads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    run = secateur.compress(
        unet(),
        target="macs=60%",
        data=IMAGES,
        process="ddpm",
        scoring=SCORING,
        recovery=RECOVERY,
        evaluation=EVALUATION,
    )
    page = run.report(folder / "run")
    assert page.stat().st_size > 10_000
    assert read_run(folder / "run").recovery == run.recovery
    assert run.report(folder / "run") == page
    with pytest.raises(secateur.SecateurError, match="is the folder of a run, which would be overwritten"):
        replace(run, settings={**run.settings, "recipe": "mine"}).save(folder / "run")
    assert torch.equal(output(secateur.from_pretrained(folder / "run" / "model")), output(run.model))


@pytest.mark.slow
def test_a_run_saved_again_has_the_pipeline_of_the_newer_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run = secateur.compress(
        DDPMPipeline(unet(), DDPMScheduler()), target="macs=70%", data=IMAGES, recipe="magnitude",
        recovery=RECOVERY, evaluation=secateur.EvaluationConfig(metrics=("loss",)),
    )  # fmt: skip
    run.save(folder)
    with torch.no_grad():
        run.model.conv_out.bias += 1
    run.save(folder)
    for place in (folder / "model", folder / "pipeline" / "unet"):
        assert torch.equal(secateur.from_pretrained(place).conv_out.bias, run.model.conv_out.bias)


def test_a_run_that_compensates_shows_four_models():
    run = secateur.compress(
        unet(),
        target="macs=60%",
        data=IMAGES,
        process="ddpm",
        compensates=True,
        compensation=secateur.CompensationConfig(num_tuples=24, rows=2000),
        scoring=SCORING,
        recovery=RECOVERY,
        evaluation=EVALUATION,
    )
    assert list(run.evaluation.models) == ["dense", "pruned", "compensated", "recovered"]
    assert run.compensation.readers
