"""Metrics that need no images work without data: sizes, speed, and the distance from a dense model's samples."""

import copy

import pytest
import torch
from diffusers import DDPMScheduler

import secateur
from models import half, unet
from pipelines import dit_pipeline
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.io.manifest import apply_cut
from secateur.io.pipeline import load

EVALUATION = secateur.EvaluationConfig(
    num_images=6, num_inference_steps=2, latency=secateur.LatencyOptions(rounds=2, batch_sizes=(1,))
)
OPTIONS = {"process": DDPMScheduler(), "evaluation": EVALUATION, "device": "cpu"}


@pytest.fixture(scope="module")
def pair():
    return unet(), apply_cut(unet(), half(unet()))


def test_two_models_are_compared_and_notes_name_what_needs_data(pair, tmp_path):
    dense, pruned = pair
    result = secateur.evaluate(pruned, reference=dense, out=tmp_path / "out", **OPTIONS)
    assert result.macs.ratio < 1
    assert result["ssim"].value < 1
    assert result.data is None
    assert "fd" not in result.metrics
    notes = " ".join(result.notes)
    assert "no loss: loss looks at images of the data; give data" in notes
    assert "no frechet: frechet looks at images of the data" in notes
    page = (tmp_path / "out" / "report.html").read_text()
    assert "SSIM" in page
    assert not (tmp_path / "out" / "evaluation" / "real.png").exists()
    again = secateur.evaluate(pruned, reference=dense, out=tmp_path / "out", **OPTIONS)
    assert again["ssim"].value == result["ssim"].value


def test_a_model_alone_is_sized_and_timed(pair):
    result = secateur.evaluate(pair[0], **OPTIONS)
    (only,) = result.models.values()
    assert only.latency
    assert only.macs > 0


@pytest.mark.parametrize("name", ["loss", "output-error", "frechet", "kid", "prdc", "per-class", "clip"])
def test_a_metric_that_was_named_and_looks_at_images_asks_for_them(pair, name):
    with pytest.raises(SecateurError, match=f"^{name} looks at images of the data; give data"):
        secateur.evaluate(pair[1], reference=pair[0], metrics=(name,), **OPTIONS)


@pytest.mark.parametrize("name", ["latency", "consistency", "ftle"])
def test_a_metric_that_was_named_and_looks_at_none_is_measured(pair, name):
    assert secateur.evaluate(pair[1], reference=pair[0], metrics=(name,), **OPTIONS).notes == ()


def test_a_model_of_latents_draws_its_own(tmp_path):
    dit_pipeline(tmp_path / "pipeline")
    loaded = load(tmp_path / "pipeline")
    pruned = apply_cut(copy.deepcopy(loaded.model), half(loaded.model))
    folder = secateur.save_pipeline(loaded, pruned, tmp_path / "pruned")
    options = {key: value for key, value in OPTIONS.items() if key != "process"}
    result = secateur.evaluate(str(folder), reference=str(tmp_path / "pipeline"), **options)
    assert torch.isfinite(torch.tensor(result["ssim"].value))


def test_a_decoder_has_nothing_to_reconstruct(tmp_path):
    dit_pipeline(tmp_path / "pipeline")
    with pytest.raises(SecateurError, match="decoder is measured by the images"):
        secateur.evaluate(str(tmp_path / "pipeline"), component="vae", evaluation=EVALUATION, device="cpu")


@pytest.mark.slow
def test_a_plan_needs_no_data(capsys):
    main(["compress", "digits-sit", "--target", "macs=60%", "--dry-run"])
    assert "MACs" in capsys.readouterr().out


def test_compress_asks_for_data_before_it_looks_at_the_model(tmp_path, capsys):
    wanted = ["compress", "nothing-is-here", "--target", "macs=60%"]
    for given, missing in ((["--data", "digits"], "--out"), (["--out", str(tmp_path / "run")], "--data")):
        with pytest.raises(SystemExit):
            main([*wanted, *given])
        assert f"secateur: give {missing}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
