"""Commands that cannot work end in one line, and leave what was there as it was."""

import json

import pytest
import torch

import secateur
from command_runs import saved_models
from models import dit, unet
from secateur.base.errors import SecateurError
from secateur.cli import main

models = pytest.fixture(saved_models, scope="module")


BAD = {
    "no such model": ["prune", "/nowhere/model", "--target", "50%", "--data", "digits", "--out", "OUT"],
    "no such data": ["prune", "UNET", "--target", "50%", "--data", "/nowhere/images", "--out", "OUT"],
    "no such recipe": ["compress", "UNET", "--target", "50%", "--data", "digits", "--out", "OUT", "--recipe", "best"],
    "bad target": ["prune", "UNET", "--target", "half", "--data", "digits", "--out", "OUT"],
    "unreachable": ["prune", "UNET", "--target", "1%", "--data", "digits", "--out", "OUT"],
    "no teacher": ["finetune", "UNET", "--data", "digits", "--out", "OUT", "--objective", "distillation"],
    "no objective": ["compress", "UNET", "--target", "60%", "--data", "digits", "--out", "OUT", "--objective", "magic"],
    "no device": ["prune", "UNET", "--target", "60%", "--data", "digits", "--out", "OUT", "--device", "abacus"],
    "bad class": ["sample", "SIT", "--out", "OUT.png", "--class-label", "77"],
    "no run": ["report", "UNET/.."],
    "no blocks wanted": ["prune", "UNET", "--target", "blocks=99", "--data", "digits", "--out", "OUT"],
    "round to 0": ["prune", "UNET", "--target", "60%", "--data", "digits", "--out", "OUT", "--cut.round-to", "0"],
    "no images": ["rank", "UNET", "--data", "digits", "--out", "OUT", "--scoring.num-images", "0"],
    "threshold": ["rank", "UNET", "--data", "digits", "--out", "OUT", "--scoring.options.threshold", "5"],
    "no criterion": ["rank", "UNET", "--data", "digits", "--out", "OUT", "--criterion", "tylor"],
    "no criterion for the recipe": [
        *["compress", "UNET", "--target", "60%", "--data", "digits", "--out", "OUT"],
        *["--criterion", "magnitud"],
    ],
    "no data": ["prune", "UNET", "--target", "60%", "--out", "OUT"],
    "too many steps": ["sample", "UNET", "--out", "OUT.png", "--num-inference-steps", "2000"],
    "negative guidance": ["sample", "SIT", "--out", "OUT.png", "--guidance-scale", "-1"],
    "endless guidance": ["sample", "SIT", "--out", "OUT.png", "--guidance-scale", "nan"],
    "negative guidance of samples": [
        *["evaluate", "SIT", "--data", "digits", "--out", "OUT", "--evaluation.guidance-scale", "-0.5"],
    ],
    "no guidance": ["sample", "UNET", "--out", "OUT.png", "--guidance-scale", "5"],
    "small images": ["evaluate", "UNET", "--data", "digits", "--out", "OUT", "--metrics", "ms-ssim"],
    "no reference": ["evaluate", "UNET", "--data", "digits", "--out", "OUT", "--metrics", "rfid"],
    "no statistics": [
        *["evaluate", "UNET", "--data", "digits", "--out", "OUT", "--metrics", "frechet"],
        *["--evaluation.frechet.statistics", "/nowhere.npz"],
    ],
    "no sampler": ["sample", "UNET", "--out", "OUT.png", "--scheduler", "MagicScheduler"],
    "other sampler": [
        *["compress", "UNET", "--target", "60%", "--data", "digits", "--out", "OUT"],
        *["--evaluation.scheduler", "FlowMatchEulerDiscreteScheduler"],
    ],
    "no fp16": [
        *["compress", "UNET", "--target", "60%", "--data", "digits", "--out", "OUT", "--device", "cpu"],
        *["--recovery.mixed-precision", "fp16"],
    ],
    "no tracker": ["finetune", "UNET", "--data", "digits", "--out", "OUT", "--recovery.report-to", "abacus"],
    "no share of a batch": [
        *["finetune", "UNET", "--data", "digits", "--out", "OUT"],
        *["--recovery.batch-size", "10", "--recovery.accumulation", "3"],
    ],
    "other teacher": [
        *["finetune", "SIT", "--data", "digits", "--out", "OUT", "--objective", "distillation", "--teacher", "UNET"],
    ],
    "zero steps": ["finetune", "UNET", "--data", "digits", "--out", "OUT", "--steps", "0"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_bad_input_ends_in_one_line_and_writes_nothing(models, tmp_path, capsys, arguments):
    places = {"UNET": str(models / "unet"), "SIT": str(models / "sit"), "OUT": str(tmp_path / "out")}
    for key, value in places.items():
        arguments = [argument.replace(key, value) for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("secateur: ")
    assert list(tmp_path.iterdir()) == []


def test_an_out_folder_that_holds_something_else_is_refused_and_unchanged(models, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.txt").write_text("sun")
    with pytest.raises(SecateurError, match="not a run of secateur"):
        secateur.prune(
            str(models / "unet"), target="60%", data="digits", out=tmp_path / "photos", criterion="magnitude"
        )
    assert (tmp_path / "photos" / "holiday.txt").read_text() == "sun"


def test_other_settings_in_a_run_folder_are_refused(models, tmp_path):
    secateur.prune(str(models / "unet"), target="60%", data="digits", out=tmp_path / "run", criterion="magnitude")
    with pytest.raises(SecateurError, match="target"):
        secateur.prune(str(models / "unet"), target="70%", data="digits", out=tmp_path / "run", criterion="magnitude")


def test_images_of_other_weights_do_not_join_a_folder_of_images(models, tmp_path):
    folder, config = tmp_path / "model", json.loads((models / "unet" / "scheduler_config.json").read_text())
    options = {"num_inference_steps": 2, "out": tmp_path / "images"}
    secateur.save_pretrained(unet(), folder, config)
    secateur.sample(str(folder), num_images=1, **options)
    secateur.sample(str(folder), num_images=2, **options)
    trained = unet()
    with torch.no_grad():
        trained.conv_out.weight.add_(0.1)
    secateur.save_pretrained(trained, folder, config)
    with pytest.raises(SecateurError, match="begun with another model"):
        secateur.sample(str(folder), num_images=3, **options)
    assert len(list((tmp_path / "images").glob("*.png"))) == 2


def test_models_of_different_shapes_are_not_compared(models, tmp_path):
    config = json.loads((models / "unet" / "scheduler_config.json").read_text())
    secateur.save_pretrained(unet(sample_size=16), tmp_path / "larger", config)
    for command, role in ((secateur.evaluate, "reference"), (secateur.finetune, "teacher")):
        with pytest.raises(SecateurError, match="inputs of different shapes"):
            command(str(tmp_path / "larger"), data="digits", out=tmp_path / "out", **{role: str(models / "unet")})
    assert not (tmp_path / "out").exists()


def test_models_of_different_classes_are_not_compared(models, tmp_path):
    folder = tmp_path / "two"
    config = json.loads((models / "sit" / "scheduler_config.json").read_text())
    secateur.save_pretrained(dit(num_embeds_ada_norm=2), folder, config)
    with pytest.raises(SecateurError, match="different numbers of classes"):
        secateur.evaluate(str(folder), data="digits", reference=str(models / "sit"), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
