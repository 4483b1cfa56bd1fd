"""The commands end to end on small models: what they write, what they refuse, and that a stopped run resumes."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

import secateur
from disks import left_behind
from models import dit, output, unet
from secateur.base import console
from secateur.base.devices import device_of_process
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.data import load_data
from secateur.evaluation import EvaluationConfig
from secateur.recovery import RecoveryConfig
from secateur.runs import stages
from secateur.runs.data import open_data
from secateur.runs.folder import run_folder
from secateur.runs.subject import open_subject

QUICK = [
    *("--scoring.num-timesteps", "4", "--scoring.num-images", "8"),
    *("--recovery.batch-size", "8", "--recovery.log-every", "1", "--recovery.checkpoint-every", "2"),
    *("--evaluation.num-images", "12", "--evaluation.num-inference-steps", "2", "--evaluation.latency.rounds", "2"),
]
RANKED = QUICK[:4]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    ddpm = dict(DDPMScheduler().config) | {"_class_name": "DDPMScheduler"}
    flow = dict(FlowMatchEulerDiscreteScheduler().config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    secateur.save_pretrained(unet(), folder / "unet", ddpm)
    secateur.save_pretrained(dit(), folder / "sit", flow)
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(folder / "pipeline")
    return folder


def compress(model, out, *more):
    main(
        [
            "compress",
            str(model),
            "--target",
            "macs=60%",
            "--data",
            "digits",
            "--out",
            str(out),
            "--recipe",
            "diff-pruning",
            "--steps",
            "4",
            *QUICK,
            *more,
        ]
    )


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


STAGES = ["score", "write_ranking", "one_shot", "write_cut", "recover", "evaluate_models", "write_evaluation"]


@pytest.mark.torture  # tests/faults/test_kills.py has shorter ones
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_dies_in_any_stage_resumes_to_the_same_result(models, tmp_path, monkeypatch, stage):
    compress(models / "unet", tmp_path / "whole")

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, stage, dies)
        with pytest.raises(SystemExit) as stopped:
            compress(models / "unet", tmp_path / "run")
    assert stopped.value.code == 130
    compress(models / "unet", tmp_path / "run")
    weights = [load_file(tmp_path / run / "model" / "diffusion_pytorch_model.safetensors") for run in ("whole", "run")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


@pytest.mark.torture
def test_a_killed_compression_resumes_to_the_same_result(models, tmp_path):
    command = [
        sys.executable,
        "-m",
        "secateur",
        "compress",
        str(models / "unet"),
        "--target",
        "60%",
        "--data",
        "digits",
    ]
    command += ["--steps", "60", *QUICK]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment)
    for delay in (9.0, 10.0, 11.0):
        process = subprocess.Popen([*command, "--out", str(tmp_path / "run")], env=environment)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, env=environment)
    weights = [load_file(tmp_path / run / "model" / "diffusion_pytorch_model.safetensors") for run in ("whole", "run")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


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


def test_a_criterion_of_the_weights_alone_needs_no_images(models, tmp_path):
    run = ["prune", str(models / "unet"), "--target", "60%", "--criterion", "magnitude", "--out"]
    main([*run, str(tmp_path / "squares"), "--scoring.options.reduction", "square"])
    main([*run, str(tmp_path / "sizes"), "--data", "digits"])
    squares, sizes = (json.loads((tmp_path / name / "ranking.json").read_text()) for name in ("squares", "sizes"))
    assert squares["options"]["options"] == {"reduction": "square"}
    assert squares["dims"] != sizes["dims"]


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


def test_a_run_resumes_with_settings_that_change_no_result(tmp_path):
    def described(at_once, **recovery):
        groups = {"scoring": secateur.ScoringConfig(batch_size=at_once), "recovery": RecoveryConfig(**recovery)}
        return {"command": "compress", "evaluation": EvaluationConfig(batch_size=at_once), **groups}

    with run_folder(tmp_path / "run", described(64), {}):
        (tmp_path / "run" / left_behind("model")).mkdir()
    with run_folder(tmp_path / "run", described(5, accumulation=2, log_every=3), {}):
        pass
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["evaluation"]["batch_size"], config["recovery"]["accumulation"]) == (5, 2)
    assert "command_line" in config
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]
    with pytest.raises(SecateurError, match=r"begun with another recovery\.batch_size, recovery\.seed; "):
        run_folder(tmp_path / "run", described(5, seed=1, batch_size=32), {}).__enter__()


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


def test_a_full_disk_is_one_line_and_keeps_what_was_there(models, tmp_path, monkeypatch, capsys):
    arguments = ["rank", str(models / "unet"), "--data", "digits", "--out", str(tmp_path / "run"), *RANKED]
    main(arguments)
    before = (tmp_path / "run" / "ranking.json").read_text()
    (tmp_path / "run" / "tables" / "ranking.md").unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        with pytest.raises(SystemExit):
            main(arguments)
    assert "No space left" in capsys.readouterr().err
    assert (tmp_path / "run" / "ranking.json").read_text() == before
    main(arguments)
    assert (tmp_path / "run" / "tables" / "ranking.md").is_file()


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


@pytest.mark.parametrize(("name", "device"), [("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu"), ("mps", "mps")])
def test_every_process_of_a_launcher_has_a_device_of_its_own(name, device, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_process(name) == torch.device(device)


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
