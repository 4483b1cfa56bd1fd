"""The commands end to end on small models: what they write, print and predict."""

import contextlib
import json
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import secateur
from command_runs import QUICK, RANKED, compress, saved_models
from models import dit, output, unet
from secateur.base import console
from secateur.cli import main
from secateur.data import load_data
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject

models = pytest.fixture(saved_models, scope="module")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unet", "sit"])
def test_compress_writes_a_model_a_report_and_everything_behind_them(models, tmp_path, name, capsys):
    compress(models / name, tmp_path / "run", "--objective", "distillation")
    run = tmp_path / "run"
    cut = json.loads((run / "cut.json").read_text())
    assert cut["after"]["macs"] <= 0.6 * cut["before"]["macs"]
    model = secateur.from_pretrained(run / "model")
    assert sum(parameter.numel() for parameter in model.parameters()) == cut["after"]["parameters"]
    evaluation = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["dense", "pruned", "recovered"]
    assert evaluation["models"]["pruned"]["macs"] == cut["after"]["macs"]
    steps = json.loads((run / "model" / "pruning.json").read_text())["steps"]
    assert [step["kind"] for step in steps] == ["cut", "recovery"]
    assert steps[0]["criterion"] == "diff-pruning"
    for plot in ("ranking", "cut", "training", "denoising", "speed", "samples"):
        with Image.open(run / "plots" / f"{plot}.png") as image:
            assert min(image.size) > 40
    assert (run / "report.html").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert str(run / "model") in printed


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run(models, tmp_path):
    for name in ("first", "second"):
        compress(models / "unet", tmp_path / name, "--seed", "3")
    first, second = tmp_path / "first", tmp_path / "second"
    assert (
        json.loads((first / "ranking.json").read_text())["dims"]
        == json.loads((second / "ranking.json").read_text())["dims"]
    )
    weights = [load_file(run / "model" / "diffusion_pytorch_model.safetensors") for run in (first, second)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    compress(models / "unet", tmp_path / "other", "--seed", "4")
    other = load_file(tmp_path / "other" / "model" / "diffusion_pytorch_model.safetensors")
    assert any(
        other[key].shape != value.shape or not torch.equal(value, other[key]) for key, value in weights[0].items()
    )


def test_prune_again_composes_and_a_pipeline_stays_a_pipeline(models, tmp_path):
    for source, out in ((models / "pipeline", "first"), (tmp_path / "first" / "pipeline", "second")):
        secateur.prune(
            str(source),
            target="macs=80%",
            data="digits",
            out=tmp_path / out,
            criterion="magnitude",
        )
    pipeline = secateur.load_pipeline(tmp_path / "second" / "pipeline")
    assert len(json.loads((tmp_path / "second" / "pruned" / "pruning.json").read_text())["steps"]) == 2
    assert torch.equal(output(pipeline.unet), output(secateur.from_pretrained(tmp_path / "second" / "pruned")))


def test_rank_evaluate_sample_finetune_report_inspect(models, tmp_path, capsys):
    data = ["--data", "digits"]
    main(["rank", str(models / "sit"), *data, "--out", str(tmp_path / "rank"), "--criterion", "taylor", *RANKED])
    assert len(json.loads((tmp_path / "rank" / "ranking.json").read_text())["blocks"]) == 4
    main(["evaluate", str(models / "unet"), *data, "--out", str(tmp_path / "evaluate"), *QUICK[-6:]])
    assert (tmp_path / "evaluate" / "report.html").is_file()
    main(
        [
            "sample",
            str(models / "sit"),
            "--out",
            str(tmp_path / "grid.png"),
            "--num-images",
            "20",
            "--num-inference-steps",
            "2",
        ]
    )
    with Image.open(tmp_path / "grid.png") as image:
        assert image.width == pytest.approx(5 * image.height, rel=0.2)  # ten classes wide, two high
    main(["finetune", str(models / "unet"), *data, "--out", str(tmp_path / "tuned"), "--steps", "2", *QUICK[4:6]])
    assert not torch.equal(output(secateur.from_pretrained(tmp_path / "tuned" / "model")), output(unet()))
    main(["report", str(tmp_path / "rank")])
    main(["inspect", str(models / "unet"), "--dims"])
    printed = capsys.readouterr().out
    assert "7 blocks" in printed
    assert "mid_block.attentions.0.heads" in printed


def test_dry_run_writes_nothing(models, tmp_path, capsys):
    compress(models / "unet", tmp_path / "run", "--dry-run")
    printed = capsys.readouterr().out
    assert "MACs" in printed
    assert re.search(r"^memory +about [0-9.]+[KM]B at most, to \w+ \(", printed, re.MULTILINE)
    assert "recover" in printed
    assert "in all     about" in printed
    assert re.search(r"shorter    by --\S+ \d+ \(saves .*\) or --\S+ \d+ \(saves", printed)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("command", "stage"), [("rank", "rank"), ("finetune", "recover"), ("evaluate", "evaluate")])
def test_dry_runs_of_single_stages_predict_their_time(models, tmp_path, capsys, command, stage):
    main([command, str(models / "sit"), "--data", "digits", "--out", str(tmp_path / "run"), "--dry-run"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{stage:10} about ")
    assert re.search(r"^memory +about [0-9.]+[KMG]?B at most, to ", printed, re.MULTILINE)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_python_and_the_command_line_do_the_same(models, tmp_path):
    main(["prune", str(models / "unet"), "--target", "60%", "--data", "digits", "--out", str(tmp_path / "a"), *RANKED])
    secateur.prune(
        str(models / "unet"),
        target="60%",
        data="digits",
        out=tmp_path / "b",
        scoring=secateur.ScoringConfig(num_timesteps=4, num_images=8),
    )
    assert torch.equal(*(output(secateur.from_pretrained(tmp_path / run / "pruned")) for run in "ab"))


def test_what_a_model_of_twelve_classes_draws_is_data_with_the_same_labels(models, tmp_path, capsys):
    config = json.loads((models / "sit" / "scheduler_config.json").read_text())
    secateur.save_pretrained(dit(num_embeds_ada_norm=12), tmp_path / "model", config)
    secateur.sample(str(tmp_path / "model"), out=tmp_path / "drawn", num_images=12, num_inference_steps=1)
    loaded = open_subject(str(tmp_path / "model"))
    dataset = open_data(str(tmp_path / "drawn"), loaded)
    assert [int(path.parent.name) for path in dataset.paths] == dataset.labels.tolist()
    assert sorted(dataset.labels.tolist()) == list(range(12))
    (tmp_path / "drawn" / "11").rename(tmp_path / "drawn" / "last")
    capsys.readouterr()
    shown = contextlib.ExitStack()
    shown.enter_context(console.shown(True))
    open_data(str(tmp_path / "drawn"), loaded)
    assert capsys.readouterr().out == ""
    (tmp_path / "drawn" / "10").rename(tmp_path / "drawn" / "last" / "10")
    open_data(str(tmp_path / "drawn"), loaded)
    said = "classes    the data's 11 are taken for the first of the model's 12: 0 is 0, 10 is last\n"
    assert capsys.readouterr().out == said
    open_data(str(tmp_path / "drawn"), loaded, new_labels=True)
    assert capsys.readouterr().out == ""
    shown.close()


def test_images_in_class_folders(models, tmp_path):
    generator = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(6):
            pixels = generator.integers(0, 256, (20, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{i}.png")
    main(
        [
            "prune",
            str(models / "sit"),
            "--target",
            "70%",
            "--data",
            str(tmp_path / "images"),
            "--out",
            str(tmp_path / "run"),
            *RANKED,
        ]
    )
    assert (tmp_path / "run" / "pruned" / "config.json").is_file()


def test_a_criterion_of_the_weights_alone_needs_no_images(models, tmp_path):
    run = ["prune", str(models / "unet"), "--target", "60%", "--criterion", "magnitude", "--out"]
    main([*run, str(tmp_path / "squares"), "--scoring.options.reduction", "square"])
    main([*run, str(tmp_path / "sizes"), "--data", "digits"])
    squares, sizes = (json.loads((tmp_path / name / "ranking.json").read_text()) for name in ("squares", "sizes"))
    assert squares["options"]["options"] == {"reduction": "square"}
    assert squares["dims"] != sizes["dims"]


@pytest.mark.slow
def test_a_model_in_half_precision_is_recovered_to_one(models, tmp_path):
    config = json.loads((models / "sit" / "scheduler_config.json").read_text())
    secateur.save_pretrained(dit().bfloat16(), tmp_path / "half", config)
    stages = ["--progressive.stages", "2", "--progressive.decay-stages", "1", "--progressive.stage-steps", "1"]
    compress(tmp_path / "half", tmp_path / "run", "--schedule", "progressive", *stages)
    weights = load_file(tmp_path / "run" / "model" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    models = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())["models"]
    assert {model["dtype"] for model in models.values()} == {"bfloat16"}


@pytest.mark.slow
def test_quickstart_within_three_minutes(tmp_path):
    begun = time.monotonic()
    secateur.quickstart(out=tmp_path / "run")
    assert time.monotonic() - begun < 180
    models = json.loads((tmp_path / "run" / "evaluation" / "evaluation.json").read_text())["models"]
    assert models["recovered"]["macs"] <= models["dense"]["macs"] / 2
    distances = {name: entry["estimates"]["fd"]["value"] for name, entry in models.items()}
    assert distances["recovered"] < distances["compensated"] < distances["pruned"]
    assert distances["dense"] < distances["compensated"]
    assert distances["recovered"] < 1.5 * distances["dense"]


def test_samples_of_16_bits_are_what_was_drawn(models, tmp_path, capsys):
    options = {"num_images": 3, "num_inference_steps": 2, "device": "cpu"}
    drawn = secateur.sample(str(models / "unet"), **options)
    arguments = ["--num-images", "3", "--num-inference-steps", "2", "--device", "cpu"]
    main(["sample", str(models / "unet"), *arguments, "--bits", "16", "--out", str(tmp_path / "deep")])
    read = load_data(tmp_path / "deep", (1, 8, 8)).batch(range(3)).sample
    assert (read - drawn.clamp(-1, 1)).abs().max() < 1 / 65535
    with pytest.raises(SystemExit):
        main(["sample", str(models / "unet"), *arguments, "--bits", "16", "--out", str(tmp_path / "grid.png")])
    assert "16 bits are written into PNG files; give a folder as --out" in capsys.readouterr().err
