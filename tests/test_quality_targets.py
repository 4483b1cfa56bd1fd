"""Quality targets: bisection finds the smallest model that has the quality after compensation."""

import json

import pytest
import torch

import secateur
from models import unet
from secateur.base.errors import SecateurError, TargetError
from secateur.cli import main
from secateur.results import QualitySearch, QualityTry, read_result
from secateur.runs import quality
from secateur.runs.subject import open_subject
from secateur.schedules import parse_target
from training_runs import images

ASKED = {"data": images(), "process": "ddpm", "criterion": "magnitude", "cut": secateur.CutConfig(round_to=2)}
REFIT = secateur.CompensationConfig(num_tuples=16, rows=1000)


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch):
    monkeypatch.setattr(quality, "IMAGES", 4)
    monkeypatch.setattr(quality, "TRIES", 4)


@pytest.mark.parametrize(
    ("text", "metric", "value", "said"),
    [
        ("ssim=0.95", "ssim", 0.95, "ssim=0.95"),
        ("ssim=95%", "ssim", 0.95, "ssim=0.95"),
        ("loss=5%", "loss", 0.05, "loss=5%"),
        ("loss=0.2", "loss", 0.2, "loss=20%"),
    ],
)
def test_a_quality_is_read_and_said(text, metric, value, said):
    target = parse_target(text)
    assert (target.metric, target.value, target.is_quality, str(target)) == (metric, value, True, said)
    assert parse_target(said) == target
    assert not parse_target("macs=50%").is_quality


@pytest.mark.parametrize("text", ["ssim=2", "ssim=0", "loss=3G", "ssim=20ms"])
def test_what_no_quality_is_refused(text):
    with pytest.raises(TargetError):
        parse_target(text)


@pytest.mark.slow
def test_the_smallest_model_of_that_quality_is_found_and_every_trial_is_reported(tmp_path):
    model = unet()
    pruned = secateur.prune(model, target="loss=50%", compensation=REFIT, out=tmp_path / "run", **ASKED)
    found = read_result(QualitySearch, tmp_path / "run" / "quality.json")
    assert found.tries[0].asked == 0.5
    assert len(found.tries) == 4
    held = [each.macs for each in found.tries if each.holds]
    failed = [each.asked for each in found.tries if not each.holds]
    assert held
    assert min(held) > max(failed, default=0)
    assert all((each.quality <= 0.5) == each.holds for each in found.tries if each.quality is not None)
    cut = json.loads((tmp_path / "run" / "cut.json").read_text())
    assert cut["reached"] / cut["dense"] == pytest.approx(found.found.macs)
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_a_stopped_search_resumes(tmp_path, monkeypatch):
    tried = []
    inner = quality._tried

    def counting(*arguments):
        if len(tried) == 2:
            raise OSError
        tried.append(arguments[2])
        return inner(*arguments)

    monkeypatch.setattr(quality, "_tried", counting)
    asked = {"target": "loss=90%", "out": tmp_path / "run", **ASKED}
    with pytest.raises(OSError, match=r"^$"):
        secateur.prune(unet(), **asked)
    monkeypatch.setattr(quality, "_tried", lambda *arguments: tried.append(arguments[2]) or inner(*arguments))
    secateur.prune(unet(), **asked)
    assert len(tried) == len(set(tried)) == 4


@pytest.mark.parametrize("goal", ["ssim=0.9", "loss=5%"])
def test_a_model_that_diverges_does_not_hold_a_quality(goal):
    subject, data = open_subject(unet(), "ddpm"), images()
    evaluation = secateur.EvaluationConfig(num_inference_steps=2)
    with quality._quality_of(subject, data, parse_target(goal), evaluation) as quality_of:
        model = unet()
        with torch.no_grad():
            model.conv_out.bias.fill_(float("nan"))
        assert quality_of(model) is None


def test_a_search_says_what_it_found():
    search = QualitySearch("ssim=0.9", "SSIM")
    assert search.found is None
    tries = (
        QualityTry(0.5, 0.48, 0.93, True),
        QualityTry(0.25, None, None, False),
        QualityTry(0.375, 0.37, 0.8, False),
    )
    (sentence,) = QualitySearch("ssim=0.9", "SSIM", tries).sentences()
    assert sentence == (
        "Of 2 models cut and measured for ssim=0.9, the smallest that holds it has 48% of the MACs: SSIM 0.93."
    )


def test_quality_targets_that_cannot_be_searched_are_refused_before_work():
    with pytest.raises(SecateurError, match="one-shot cuts before recovery"):
        secateur.plan(unet(), target="ssim=0.9", data=images(), process="ddpm", schedule="progressive")
    with pytest.raises(TargetError, match="is a quality"):
        secateur.Pruning(unet(), target="ssim=0.9", data=images(), process="ddpm", steps=20)
    with pytest.raises(SecateurError, match="give data"):
        secateur.prune(unet(), target="ssim=0.9", process="ddpm", criterion="magnitude")
    with pytest.raises(TargetError, match=r"no smaller model holds ssim=1"):
        secateur.prune(unet(), target="ssim=100%", **ASKED)


@pytest.mark.slow
def test_compress_seeks_a_quality(tmp_path, capsys):
    options = ["--data", "digits", "--out", str(tmp_path / "run"), "--device", "cpu", "--steps", "2"]
    options += ["--recovery.batch-size", "4", "--criterion", "magnitude", "--compensation.num-tuples", "32"]
    options += ["--evaluation.num-images", "8", "--evaluation.num-inference-steps", "3", "--metrics", "loss"]
    main(["compress", "digits-unet", "--target", "ssim=0.8", *options])
    assert "measured for ssim=0.8, the smallest that holds it has" in capsys.readouterr().out
