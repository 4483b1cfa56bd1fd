"""`secateur compress` with the progressive schedule."""

import json

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

import secateur
from models import dit, output, unet
from secateur.cli import main
from secateur.models.network import example_inputs
from secateur.recovery.checkpoints import newest_checkpoint
from secateur.runs import stages as command_stages
from secateur.structure.cost import cost_model
from training_runs import stage_log

STAGES = [
    *("--recipe", "gradient-flow", "--progressive.stages", "2", "--progressive.decay-stages", "2"),
    *("--progressive.stage-steps", "1"),
]
FEW = [
    *("--scoring.num-timesteps", "2", "--scoring.num-images", "4"),
    *("--recovery.batch-size", "4", "--recovery.log-every", "1", "--recovery.checkpoint-every", "2"),
    *("--evaluation.num-images", "12", "--evaluation.num-inference-steps", "2", "--evaluation.latency.rounds", "2"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model, scheduler in (("unet", unet(), DDPMScheduler), ("sit", dit(), FlowMatchEulerDiscreteScheduler)):
        secateur.save_pretrained(model, folder / name, {**scheduler().config, "_class_name": scheduler.__name__})
    return folder


def compress(model, out, *more, steps=4):
    options = ["--target", "macs=60%", "--data", "digits", "--out", str(out), "--steps", str(steps)]
    main(["compress", str(model), *options, *STAGES, *FEW, *more])


@pytest.fixture(scope="module")
def compressed(models, tmp_path_factory):
    out = tmp_path_factory.mktemp("compressed") / "run"
    compress(models / "unet", out)
    return out


@pytest.mark.slow
def test_compress_ends_at_the_target_with_a_model_that_loads(compressed):
    planned = json.loads((compressed / "cut.json").read_text())
    goal = json.loads((compressed / "goal.json").read_text())
    model = secateur.from_pretrained(compressed / "model")
    assert planned["after"]["macs"] <= 0.6 * planned["before"]["macs"]
    assert sum(parameter.numel() for parameter in model.parameters()) == planned["after"]["parameters"]
    assert newest_checkpoint(compressed / "recovery") is None  # a longer run would have had other stages
    records = stage_log(compressed / "recovery")
    assert [record["stage"] for record in records] == [1, 2, 3, 4]
    assert records[-1]["macs"] == planned["after"]["macs"]
    assert all({"energy", "gradient_norm", "loss"} <= record.keys() for record in records[:2])
    cut, recovery = json.loads((compressed / "model" / "pruning.json").read_text())["steps"]
    assert (cut["kind"], recovery["kind"]) == ("cut", "recovery")
    assert {name: len(dim["kept"]) for name, dim in cut["dims"].items()} == {
        k: len(v) for k, v in goal["cut"]["kept"].items()
    }
    assert (cut["schedule"], cut["criterion"], cut["target"]) == ("progressive", "gradient-flow", "macs=60%")
    assert cut["progressive"]["stages"] == 2
    evaluation = json.loads((compressed / "evaluation" / "evaluation.json").read_text())
    assert list(evaluation["models"]) == ["dense", "recovered"]
    assert evaluation["models"]["recovered"]["macs"] == planned["after"]["macs"]
    assert (compressed / "report.html").is_file()
    assert not (compressed / "pruned").exists()


@pytest.fixture
def quiet(monkeypatch):
    """No plots, evaluation and report."""
    monkeypatch.setattr("secateur.runs.compression.evaluate_stage", lambda *_: (None, {}))
    monkeypatch.setattr("secateur.api.compress.write_report", lambda *_: None)
    monkeypatch.setattr("secateur.runs.run.Run.__str__", lambda _: "")
    for name in ("write_ranking", "write_cut"):
        monkeypatch.setattr(command_stages, name, lambda *_: None)


@pytest.mark.slow
def test_what_was_pruned_softly_can_be_pruned_again(compressed, quiet, tmp_path):
    compress(compressed / "model", tmp_path / "again", "--target", "macs=80%", "--criterion", "magnitude")
    before, after = (secateur.from_pretrained(folder / "model") for folder in (compressed, tmp_path / "again"))
    steps = json.loads((tmp_path / "again" / "model" / "pruning.json").read_text())["steps"]
    assert [step["kind"] for step in steps] == ["cut", "recovery", "cut", "recovery"]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (before, after)]
    assert sizes[1] < sizes[0]
    secateur.save_pretrained(after, tmp_path / "copy")
    assert torch.equal(output(secateur.from_pretrained(tmp_path / "copy")), output(after))


@pytest.mark.slow
def test_a_compression_that_is_done_does_nothing_twice(compressed, models, quiet, monkeypatch):
    def never(*_, **__):
        raise AssertionError

    for name in ("score", "one_shot", "recover", "save_pretrained"):
        monkeypatch.setattr(command_stages, name, never)
    compress(models / "unet", compressed)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["write_cut", "save_pretrained"])
def test_a_compression_that_died_resumes_to_the_same_result(stage, compressed, models, quiet, monkeypatch, tmp_path):
    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command_stages, stage, dies)
        with pytest.raises(SystemExit):
            compress(models / "unet", tmp_path / "run")
    compress(models / "unet", tmp_path / "run")
    runs = compressed, tmp_path / "run"
    weights = [load_file(run / "model" / "diffusion_pytorch_model.safetensors") for run in runs]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert stage_log(compressed / "recovery") == stage_log(tmp_path / "run" / "recovery")


def test_a_latency_is_measured_before_the_stages_and_never_again(models, quiet, monkeypatch, tmp_path):
    measured = []

    def by_macs(model, structure):
        cost = cost_model(model, structure, example_inputs(model, 1))

        def measure(cut):
            measured.append(cut)
            return (
                cost({name: len(units) for name, units in cut.kept.items()}, frozenset(cut.removed_blocks)).macs / 1e6
            )

        return measure

    def dies(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_stages, "latency_of", by_macs)
    with monkeypatch.context() as patch:
        patch.setattr(command_stages, "recover", dies)
        with pytest.raises(SystemExit):
            compress(models / "unet", tmp_path / "run", "--target", "latency=60%")
    assert measured
    measured.clear()
    compress(models / "unet", tmp_path / "run", "--target", "latency=60%")
    assert not measured
    planned = json.loads((tmp_path / "run" / "cut.json").read_text())
    assert planned["metric"] == "latency"
    assert 0.3 * planned["dense"] < planned["reached"] <= 0.6 * planned["dense"]
    last = stage_log(tmp_path / "run" / "recovery")[-1]
    assert last["macs"] == planned["after"]["macs"] == pytest.approx(1e6 * planned["reached"], rel=1e-3)


def test_blocks_are_masked_gradually_too(models, quiet, tmp_path):
    compress(models / "sit", tmp_path / "run", "--target", "blocks=2", "--criterion", "uniform", "--progressive.coarse")
    model = secateur.from_pretrained(tmp_path / "run" / "model")
    assert len(model.transformer_blocks) == model.config.num_layers == 2
    assert [record["selected"] for record in stage_log(tmp_path / "run" / "recovery")] == [1, 2, 2, 2]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_too_few_steps_are_one_line_before_any_work(more, models, tmp_path, capsys):
    with pytest.raises(SystemExit):
        compress(models / "unet", tmp_path / "run", *more, steps=3)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("secateur: progressive pruning takes 3 steps, recovery has 3")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_predicts_the_scores_between_stages(models, tmp_path, capsys):
    compress(models / "unet", tmp_path / "run", "--dry-run")
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    stages = ["rank", "rank", "recover", "evaluate", "in", "shorter", "evaluate", "memory"]
    assert lines == ["target", "MACs", "parameters", "cut", *stages]
    assert not (tmp_path / "run").exists()
