"""What a finished run keeps, how a longer run continues from it, and the images drawn during training."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

import secateur
from models import autoencoder, dit, unet
from secateur import BookConfig, EvaluationConfig, RecoveryConfig, ScoringConfig
from secateur.base.errors import SecateurError
from secateur.base.origin import begun_by
from secateur.data import load_data
from secateur.reporting import read_run, write_report
from secateur.runs.folder import run_folder
from secateur.runs.stages import evaluate_stage
from secateur.runs.subject import open_subject
from secateur.runs.tidy import make_longer
from secateur.runs.validation import check_validation

PIXELS = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
RECOVERY = RecoveryConfig(steps=2, batch_size=4, log_every=1)
WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL: dict[str, Any] = {
    "target": "macs=60%",
    "data": PIXELS,
    "process": "ddpm",
    "scoring": ScoringConfig(num_timesteps=2, num_images=4),
    "evaluation": EvaluationConfig(
        metrics=("loss", "consistency"), num_images=4, num_inference_steps=1, latency=secateur.LatencyOptions(rounds=2)
    ),
}


def tuned(out: Path, recovery: RecoveryConfig = RECOVERY, **more: Any) -> dict[str, torch.Tensor]:
    secateur.finetune(unet(), data=PIXELS, process="ddpm", recovery=recovery, out=out, **more)
    return load_file(out / "model" / WEIGHTS)


@pytest.mark.slow
def test_more_steps_continue_to_the_weights_of_a_run_that_was_as_long_from_the_start(tmp_path: Path) -> None:
    tuned(tmp_path / "run")
    longer = tuned(tmp_path / "run", replace(RECOVERY, steps=4))
    whole = tuned(tmp_path / "whole", replace(RECOVERY, steps=4))
    assert all(torch.equal(value, whole[name]) for name, value in longer.items())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recovery"]["steps"] == 4
    with pytest.raises(SecateurError, match="was begun with 4 steps, and --steps asks for 3"):
        tuned(tmp_path / "run", replace(RECOVERY, steps=3))
    with pytest.raises(SecateurError, match="begun with another"):
        tuned(tmp_path / "run", replace(RECOVERY, steps=6, seed=1))


def test_a_run_whose_learning_rate_decayed_says_why_it_cannot_continue(tmp_path: Path) -> None:
    cosine = replace(RECOVERY, lr_schedule="cosine")
    tuned(tmp_path / "run", cosine)
    with pytest.raises(
        SecateurError, match=r"begun with 2 steps and .* to 4: its learning rate goes down to zero at step 2"
    ):
        tuned(tmp_path / "run", replace(cosine, steps=4))
    with pytest.raises(SecateurError, match=r"goes down to zero .* train its result further with finetune .*run/model"):
        tuned(tmp_path / "run", replace(cosine, steps=4, warmup_steps=1))  # as recipes do for more steps
    assert not (tmp_path / "run" / "recovery" / "checkpoints").exists()
    tuned(tmp_path / "kept", cosine, keep=True)
    assert (tmp_path / "kept" / "recovery" / "checkpoints").is_dir()


def test_a_longer_run_says_the_command_that_made_it_longer(tmp_path: Path) -> None:
    def begin(steps: int) -> dict[str, Any]:
        settings = {"command": "finetune", "recovery": asdict(replace(RECOVERY, steps=steps))}
        with begun_by(["finetune", "--steps", str(steps)]), run_folder(tmp_path, settings, {}):
            return json.loads((tmp_path / "config.json").read_text())

    assert begin(2)["command_line"] == "secateur finetune --steps 2"
    assert begin(4)["command_line"] == "secateur finetune --steps 4"
    assert begin(4)["recovery"]["steps"] == 4


def test_damaged_settings_of_a_run_name_file_and_field(tmp_path: Path) -> None:
    tuned(tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    del settings["recovery"]["steps"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SecateurError, match=r"run/config.json is damaged: recovery: .*`steps`"):
        tuned(tmp_path / "run")


@pytest.mark.slow
def test_a_longer_compression_continues_too_and_keeps_nothing_twice(tmp_path: Path) -> None:
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "dense")
    small = {**SMALL, "process": None, "recipe": "diff-pruning"}

    def compressed(out: str, steps: int, **more: Any) -> secateur.Run:
        recovery = replace(RECOVERY, steps=steps)
        return secateur.compress(tmp_path / "dense", recovery=recovery, out=tmp_path / out, **small, **more)

    compressed("run", 2)
    run = tmp_path / "run"
    assert not (run / "pruned").exists()
    assert (run / "model" / WEIGHTS).samefile(run / "pipeline" / "unet" / WEIGHTS)
    before = (run / "model" / WEIGHTS).stat().st_mtime_ns
    again = compressed("run", 2)  # nothing is left to do
    assert (run / "model" / WEIGHTS).stat().st_mtime_ns == before
    assert again.evaluation is not None
    assert list(again.evaluation.models) == ["dense", "pruned", "recovered"]
    assert {"dense", "pruned", "recovered", "real"} <= again.images.keys()
    longer, whole = compressed("run", 4), compressed("whole", 4, keep=True)
    for mine, theirs in zip(longer.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert (tmp_path / "whole" / "pruned").is_dir()
    assert not (tmp_path / "whole" / "model" / WEIGHTS).samefile(tmp_path / "whole" / "pipeline" / "unet" / WEIGHTS)


def test_a_run_whose_book_or_cut_would_be_another_says_why_it_cannot_continue(tmp_path: Path) -> None:
    def settings(steps: int, tuples: int | None) -> dict[str, Any]:
        return {"recovery": asdict(replace(RECOVERY, steps=steps)), "book": {"num_tuples": tuples}}

    (tmp_path / "recorded.json").touch()
    (tmp_path / "model").mkdir()
    with pytest.raises(
        SecateurError, match=r"with 2 steps and .* to 4: it trains on a book of 8 tuples, and would on 16;"
    ):
        make_longer(tmp_path, settings(2, None), settings(4, None))
    assert (tmp_path / "model").is_dir()
    timed = {"target": "latency=50%"}
    with pytest.raises(SecateurError, match="its cut was found by measuring latencies"):
        make_longer(tmp_path, settings(2, 8) | timed, settings(4, 8) | timed)
    assert (tmp_path / "model").is_dir()
    make_longer(tmp_path, settings(2, 8), settings(4, 8))
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_a_run_on_a_book_of_given_length_continues(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"recipe": "diff-pruning-compensated", "criterion": "magnitude", "compensates": False}
    asked |= {**SMALL, "scoring": ScoringConfig(), "book": BookConfig(8, held_out=2), "out": tmp_path}
    asked["evaluation"] = EvaluationConfig(metrics=("loss",), num_images=4, num_inference_steps=1)
    learning = replace(RECOVERY, objective="distillation", weights={"denoising": 0.0})
    for steps in (2, 4):
        run = secateur.compress(unet(), recovery=replace(learning, steps=steps), **asked)
        assert run.recovery.steps == steps


def test_images_of_an_evaluation_are_there_when_its_run_resumes(tmp_path: Path) -> None:
    subject, data = open_subject(unet(), "ddpm"), load_data("digits")
    config = EvaluationConfig(metrics=("frechet",), num_images=2, num_real_images=2, num_inference_steps=1)
    first, again = (evaluate_stage(tmp_path, {"dense": subject.model}, subject, data, config) for _ in range(2))
    assert first[0] == again[0]
    assert first[1].keys() == again[1].keys() == {"dense", "real"}
    assert torch.equal(first[1]["dense"], again[1]["dense"])


def test_images_are_drawn_while_it_trains_and_change_nothing(tmp_path: Path) -> None:
    drawing = replace(RECOVERY, steps=3, validation_every=2)
    plain, drawn = tuned(tmp_path / "plain", replace(RECOVERY, steps=3)), tuned(tmp_path / "drawn", drawing)
    assert all(torch.equal(value, plain[name]) for name, value in drawn.items())
    found = read_run(tmp_path / "drawn").validation
    assert list(found) == [2, 3]  # and at the last step
    assert found[2].shape == (4, 1, 8, 8)
    assert not torch.equal(found[2], found[3])
    page = write_report(tmp_path / "drawn").read_text(encoding="utf-8")
    assert "step 2" in page
    assert page.count("step 3, image") == 4


def test_classes_and_prompts_of_the_images_are_checked_before_anything_is_done(tmp_path: Path) -> None:
    labelled = {"images": PIXELS, "labels": torch.arange(12) % 10}
    data = [{name: value[i] for name, value in labelled.items()} for i in range(12)]

    def ask(model: torch.nn.Module, **validation: Any) -> None:
        recovery = replace(RECOVERY, **validation)
        secateur.finetune(model, data=data, process="flow", recovery=recovery, out=tmp_path / "run")

    for wrong, said in (
        ({"validation_every": 1, "validation_classes": (10,)}, "the model has 10"),
        ({"validation_every": 1, "validation_prompts": ("a cat",)}, "takes no text"),
        ({"validation_classes": (1,)}, "validation_every is 0"),
    ):
        with pytest.raises(SecateurError, match=said):
            ask(dit(), **wrong)
    with pytest.raises(SecateurError, match="draws no images: leave validation_every at 0"):
        check_validation(open_subject(autoencoder(), device="cpu"), replace(RECOVERY, validation_every=1))
    assert not (tmp_path / "run").exists()
    ask(dit(), validation_every=2, validation_classes=(3, 7))
    with Image.open(tmp_path / "run" / "recovery" / "validation" / "step-00000002" / "1.png") as image:
        assert image.size == (8, 8)
    assert len(read_run(tmp_path / "run").validation[2]) == 2


@pytest.mark.parametrize(("name", "library"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_trackers_get_losses_and_images(
    tmp_path: Path, name: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(library)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    tuned(tmp_path / "run", replace(RECOVERY, validation_every=2, report_to=(name,)))
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = list((tmp_path / "run").rglob("events.out.tfevents*"))  # one of them has the settings
        found = [EventAccumulator(str(each)).Reload().Tags() for each in events]
        assert any("loss" in tags["scalars"] and tags["images"] for tags in found)
    else:
        assert list(tmp_path.rglob("offline-run-*/files/media/images/validation*.png"))
