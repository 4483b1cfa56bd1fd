"""Flux from the pipeline's folder to a pruned pipeline: samples, sizes, noise levels, criteria, recovery."""

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

import folders
import models
import secateur
from pipelines import image_folder
from sampled import generate_images
from secateur import CutConfig, EvaluationConfig, RecoveryConfig, ScoringConfig
from secateur.base.files import read_json, write_json
from secateur.cli import main
from secateur.data.autoencoder import open_autoencoder
from secateur.data.text import open_text_encoder
from secateur.io.levels import levels_of
from secateur.io.pipeline import load
from secateur.models.network import input_shape
from secateur.process.from_config import process_from_config
from secateur.process.sampling import initial_noise
from secateur.results import Evaluation, read_result
from text_pipelines import flux

SCORING = ScoringConfig(num_timesteps=2, num_images=2)
RECOVERY = RecoveryConfig(steps=1, batch_size=2, log_every=1, objective="2ndmatch")
EVALUATION = EvaluationConfig(metrics=("loss", "consistency"), num_images=2, num_inference_steps=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("dynamic", "shift", "size"), [(True, 3.0, 8), (True, 3.0, 12), (False, 1.0, 8)])
def test_samples_are_those_of_the_pipeline_with_its_own_scheduler(tmp_path, monkeypatch, dynamic, shift, size):
    monkeypatch.setattr("secateur.data.text.KEPT", torch.float32)
    pipeline = flux(tmp_path, size)
    pipeline.register_modules(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic, max_image_seq_len=300)
    )
    pipeline.save_pretrained(tmp_path)
    loaded, noise = load(tmp_path), initial_noise([3, 4], (2, size, size))
    found = generate_images(
        loaded.model,
        loaded.process,
        [3, 4],
        input_shape(loaded.model),
        open_text_encoder(tmp_path, (2 * size, 2 * size))(["a cat", "dog"]),
        num_inference_steps=4,
        decode=open_autoencoder(loaded.vae).decode,
    )
    expected = pipeline(
        ["a cat", "dog"],
        latents=FluxPipeline._pack_latents(noise, *noise.shape),
        height=2 * size,
        width=2 * size,
        num_inference_steps=4,
        output_type="pt",
    ).images
    torch.testing.assert_close(found, 2 * expected - 1, rtol=0, atol=1e-4)  # shifts round differently
    assert found.std() > 0.1


def test_a_shift_by_image_size_is_settled_by_the_model_s_own():
    dynamic = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}
    large, small = models.flux(), models.flux()
    large.register_to_config(sample_size=128)
    small.register_to_config(sample_size=32)
    for model, tokens in ((large, 4096), (small, 256)):
        settled = levels_of(dynamic, model)
        assert settled["shift"] == pytest.approx(torch.tensor(calculate_shift(tokens)).exp().item())
        exact = FlowMatchEulerDiscreteScheduler.from_config(dynamic)
        exact.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=calculate_shift(tokens))
        ours = process_from_config(settled).scheduler()
        ours.set_timesteps(4)
        torch.testing.assert_close(ours.sigmas, exact.sigmas)
    linear = levels_of(dynamic | {"time_shift_type": "linear"}, large)
    assert linear["shift"] == pytest.approx(1.15)
    assert levels_of({"shift": 3.0}, models.sd3()) == {"shift": 3.0}  # a pipeline that leaves it to the scheduler
    assert levels_of(dynamic, models.sd3())["shift"] == pytest.approx(
        torch.tensor(calculate_shift(16)).exp().item()  # 8 x 8 latents, patches of 2
    )


@pytest.mark.slow
def test_compress_returns_a_pipeline_ready_to_call(tmp_path, capsys):
    flux(tmp_path / "pipeline")
    data = image_folder(tmp_path / "images", count=3, captions=True)
    arguments = {
        "target": "macs=80%",
        "recipe": "diff-pruning",
        "data": str(data),
        "criterion": "diff-pruning",
        "scoring": SCORING,
        "recovery": RECOVERY,
        "evaluation": EVALUATION,
        "cut": CutConfig(granularity="both", round_to=1),
        "component": "transformer",
        "device": "cpu",
    }
    folders.compress(str(tmp_path / "pipeline"), out=tmp_path / "run", dry_run=True, **arguments)
    said = capsys.readouterr().out
    assert "captions   to encode once" in said
    assert "recover    about" in said
    run = folders.compress(str(tmp_path / "pipeline"), out=tmp_path / "run", **arguments)
    found = read_result(Evaluation, run / "evaluation" / "evaluation.json")
    assert found.macs.ratio < 0.8
    assert found["ssim"].value < 1
    pipeline = secateur.load_pipeline(run / "pipeline")
    shown = pipeline("a cat", height=16, width=16, num_inference_steps=2, output_type="np").images
    assert shown.shape == (1, 16, 16, 3)
    assert pipeline.transformer.num_parameters() == secateur.from_pretrained(run / "model").num_parameters()
    assert input_shape(secateur.from_pretrained(run / "model")) == (2, 8, 8)  # a pruned Flux keeps the size


def test_plain_diffusers_loads_a_model_without_some_blocks(tmp_path):
    flux(tmp_path / "pipeline", num_layers=2, num_single_layers=2)
    data = image_folder(tmp_path / "images", count=3, captions=True)
    run = folders.prune(
        str(tmp_path / "pipeline"),
        target="blocks=2",
        data=str(data),
        out=tmp_path / "run",
        criterion="ced",
        scoring=SCORING,
        cut=CutConfig(granularity="depth"),
        device="cpu",
    )
    plain = FluxPipeline.from_pretrained(run / "pipeline")
    assert len(plain.transformer.transformer_blocks) + len(plain.transformer.single_transformer_blocks) == 2
    assert torch.equal(
        models.output(plain.transformer), models.output(secateur.load_pipeline(run / "pipeline").transformer)
    )


def test_what_cannot_be_done_with_a_flux_is_one_line(tmp_path, capsys):
    flux(tmp_path / "pipeline")
    data = image_folder(tmp_path / "images", count=2, captions=True)

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*arguments, "--out", str(tmp_path / "out"), "--device", "cpu"])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    folder = str(tmp_path / "pipeline")
    alone = str(tmp_path / "pipeline" / "transformer")
    assert "give its whole pipeline" in refused("rank", alone, "--data", str(data), "--process", "flow")
    assert "give --prompt" in refused("sample", folder)
    config = tmp_path / "pipeline" / "transformer" / "config.json"
    write_json(config, read_json(config) | {"sample_size": 7})
    assert "Flux takes latents of an even size" in refused("sample", folder, "--prompt", "a cat")
    write_json(config, read_json(config) | {"sample_size": 8})
    scheduler = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
    whole = read_json(scheduler)
    for unclear in ({"base_shift": None}, {"base_image_seq_len": 4096, "max_image_seq_len": 4096}, {"max_shift": -1e9}):
        write_json(scheduler, whole | {"use_dynamic_shifting": True} | unclear)
        assert "base_shift, max_shift" in refused("sample", folder, "--prompt", "a cat")
    write_json(scheduler, whole)
    index = tmp_path / "pipeline" / "model_index.json"
    write_json(index, read_json(index) | {"_class_name": "FluxFillPipeline"})
    assert "prompts of a FluxFillPipeline are not supported" in refused("rank", folder, "--data", str(data))
