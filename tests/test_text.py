"""Text-to-image pipelines: guided samples, guidance dropout, whole compressions, and what their samples are of."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import FluxPipeline, PixArtAlphaPipeline, SanaPipeline

import folders
import secateur
from caches import own_cache
from models import randomize
from sampled import generate_images
from secateur import CutConfig, EvaluationConfig, RecoveryConfig, ScoringConfig
from secateur.base.errors import ModelError, TrainingError
from secateur.base.files import read_json
from secateur.cli import main
from secateur.data.autoencoder import latent_space
from secateur.data.conditions import accepts, null_conditions, sample_captions, sample_conditions
from secateur.data.text import open_text_encoder
from secateur.evaluation import ClipOptions, evaluate_models
from secateur.evaluation.metrics.clip import load_clip
from secateur.models.network import input_shape
from secateur.process.base import denoising_error
from secateur.process.sampling import initial_noise
from secateur.recovery.draws import draw_step
from secateur.results import Evaluation, read_result
from secateur.runs.data import decoder
from secateur.runs.subject import open_subject
from text_pipelines import PIPELINES, captioned, clip_model, opened, stable_diffusion

cache = pytest.fixture(own_cache, autouse=True)
data = pytest.fixture(captioned)

SCORING = ScoringConfig(num_timesteps=3, num_images=4)
RECOVERY = RecoveryConfig(steps=3, batch_size=4, checkpoint_every=2, log_every=1, objective="distillation")
EVALUATION = EvaluationConfig(
    metrics=("loss", "consistency"), num_images=4, num_inference_steps=2, guidance_scale=2.0, batch_size=3
)


def drawn_by(pipeline, prompts, latents, scheduler, size):
    """The images that the pipeline itself makes from `latents` in four guided steps."""
    options, (height, width) = {"guidance_scale": 3.0}, size
    if isinstance(pipeline, FluxPipeline):  # keeps its own scheduler
        latents = FluxPipeline._pack_latents(latents, *latents.shape)
        options = {"true_cfg_scale": 3.0, "negative_prompt": [""] * len(prompts)}
    else:
        pipeline.scheduler = scheduler
    if isinstance(pipeline, PixArtAlphaPipeline | SanaPipeline):
        options |= {"use_resolution_binning": False}
    options |= {"height": height, "width": width, "num_inference_steps": 4, "output_type": "pt"}
    return pipeline(prompts, latents=latents, **options).images


@pytest.mark.parametrize("name", PIPELINES)
def test_guided_samples_are_those_of_the_pipeline_itself(tmp_path, name):
    pipeline = PIPELINES[name](tmp_path / "pipeline")
    loaded = open_subject(str(tmp_path / "pipeline"), device="cpu")
    _, *size = latent_space(loaded.loaded.vae).image_shape(input_shape(loaded.model))
    encoder = open_text_encoder(loaded.loaded.pipeline, tuple(size))
    drawn = generate_images(
        loaded.model,
        loaded.process,
        [3, 4],
        input_shape(loaded.model),
        encoder(["a cat", "dog"]),
        num_inference_steps=4,
        guidance_scale=3.0,
        null=encoder.null(),
        decode=decoder(loaded),
    )
    expected = drawn_by(pipeline, ["a cat", "dog"], initial_noise([3, 4], (2, 8, 8)), loaded.process.scheduler(), size)
    torch.testing.assert_close(drawn, 2 * expected - 1, rtol=0, atol=0.02)  # states in half precision, then guided
    assert drawn.std() > 0.1


@pytest.mark.parametrize("name", PIPELINES)
def test_any_text_model_is_ranked_and_trained_on_its_captions(tmp_path, data, name):
    PIPELINES[name](tmp_path / "pipeline")
    loaded, dataset = opened(tmp_path / "pipeline", data)
    null = null_conditions(loaded.model, dataset)
    config = replace(RECOVERY, label_dropout=1.0)
    (dropped,) = draw_step(dataset, loaded.process, config, 0, null, accepts(loaded.model))
    for key, row in null.items():
        assert torch.equal(dropped.conditions[key], row.expand_as(dropped.conditions[key]))
    (told,) = draw_step(dataset, loaded.process, replace(config, label_dropout=0.0), 0, null, accepts(loaded.model))
    assert not torch.equal(told.conditions["encoder_hidden_states"], dropped.conditions["encoder_hidden_states"])
    losses = [
        denoising_error(loaded.model, loaded.process, draw.sample, draw.noise, draw.timesteps, draw.conditions)
        for draw in (told, dropped)
    ]
    assert not torch.allclose(*losses)  # the network's output depends on the text
    options = {"criterion": "taylor", "scoring": SCORING, "device": "cpu"}
    run = folders.rank(str(tmp_path / "pipeline"), data=str(data), out=tmp_path / "rank", **options)
    scores = read_json(run / "ranking.json")["dims"]
    assert max(max(values) for values in scores.values()) > 0


@pytest.mark.slow
def test_stable_diffusion_is_compressed_into_a_pipeline_ready_to_call(tmp_path, capsys, data):
    stable_diffusion(tmp_path / "pipeline")
    arguments = {
        "target": "macs=70%",
        "recipe": "diff-pruning",
        "data": str(data),
        "scoring": SCORING,
        "recovery": RECOVERY,
        "evaluation": EVALUATION,
        "cut": CutConfig(round_to=1),
        "component": "unet",
        "device": "cpu",
    }
    folders.compress(str(tmp_path / "pipeline"), out=tmp_path / "run", dry_run=True, **arguments)
    said = capsys.readouterr().out
    assert "latents    to encode once" in said
    assert "captions   to encode once" in said
    assert "recover    about" in said
    run = folders.compress(str(tmp_path / "pipeline"), out=tmp_path / "run", **arguments)
    found = read_result(Evaluation, run / "evaluation" / "evaluation.json")
    assert found.macs.ratio < 0.7
    assert found["ssim"].value < 1
    written = (run / "pipeline" / "unet" / "config.json").stat().st_mtime_ns
    folders.compress(str(tmp_path / "pipeline"), out=tmp_path / "run", **arguments)  # everything is there
    assert (run / "pipeline" / "unet" / "config.json").stat().st_mtime_ns == written
    pipeline = secateur.load_pipeline(run / "pipeline")
    shown = pipeline("a cat", height=16, width=16, num_inference_steps=2, output_type="np").images
    assert shown.shape == (1, 16, 16, 3)
    assert pipeline.unet.num_parameters() == secateur.from_pretrained(run / "model").num_parameters()
    tuned = folders.finetune(
        str(run / "pipeline"), data=str(data), out=tmp_path / "tuned", recovery=RECOVERY, steps=1, device="cpu",
        teacher=str(tmp_path / "pipeline"),
    )  # fmt: skip
    assert secateur.load_pipeline(tuned / "pipeline").unet.num_parameters() == pipeline.unet.num_parameters()


@pytest.mark.slow
def test_what_asks_for_the_empty_prompt_is_allowed_before_captions_are_encoded(tmp_path, cache, data):
    stable_diffusion(tmp_path / "pipeline")
    about = {"data": str(data), "device": "cpu"}
    model, refit = str(tmp_path / "pipeline"), secateur.CompensationConfig(condition_dropout=0.1)
    secateur.plan(model, target="macs=70%", recipe="magnitude", compensates=True, compensation=refit, **about)
    recovery = replace(RECOVERY, label_dropout=0.5)
    secateur.record(model, recovery=recovery, out=tmp_path / "book", **about)
    shutil.rmtree(cache)
    with pytest.raises(TrainingError, match=r"recorded with label_dropout 0\.5; recover with the same"):
        secateur.plan_finetune(model, book=str(tmp_path / "book"), recovery=RECOVERY, **about)
    secateur.finetune(model, book=str(tmp_path / "book"), recovery=recovery, **about)


def test_prompts_from_the_command_line(tmp_path, capsys):
    stable_diffusion(tmp_path / "pipeline")
    arguments = ["sample", str(tmp_path / "pipeline"), "--num-images", "4", "--num-inference-steps", "2"]
    places = ["--out", str(tmp_path / "grid.png"), "--device", "cpu"]
    main([*arguments, *places, "--prompt", "a cat", "a dog", "--guidance-scale", "3"])
    assert (tmp_path / "grid.png").is_file()
    with pytest.raises(SystemExit):
        main([*arguments, *places])
    assert 'give --prompt "what to draw"' in capsys.readouterr().err


@pytest.mark.slow
def test_times_of_any_text_model_are_predicted(tmp_path, capsys, data):
    for name, make in PIPELINES.items():
        make(tmp_path / name)
        options = ["--data", str(data), "--target", "macs=80%", "--device", "cpu", "--cut.round-to", "1", "--dry-run"]
        main(["prune", str(tmp_path / name), "--out", str(tmp_path / "run"), *options])
        assert "rank       about" in capsys.readouterr().out


def test_kept_samples_are_those_of_other_captions_no_more(tmp_path, data):
    stable_diffusion(tmp_path / "pipeline")

    def drawn(dataset):
        models, config = {"model": loaded.model}, replace(EVALUATION, metrics=None)
        return evaluate_models(models, loaded.process, dataset, config, decoder(loaded), cache=tmp_path / "rows")[1]

    loaded, dataset = opened(tmp_path / "pipeline", data)
    first = drawn(dataset)["model"]
    assert torch.equal(drawn(dataset)["model"], first)
    metadata = data / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a cat", "zebra"))
    _, dataset = opened(tmp_path / "pipeline", data)
    assert not torch.equal(drawn(dataset)["model"], first)


def test_clip_score_is_of_the_captions_that_the_samples_were_drawn_for(tmp_path, data, capsys, monkeypatch):
    folder = clip_model(tmp_path / "clip")
    stable_diffusion(tmp_path / "pipeline")
    loaded, dataset = opened(tmp_path / "pipeline", data)
    config = replace(EVALUATION, metrics=("clip",), clip=ClipOptions(str(folder)))
    models = {"dense": loaded.model, "pruned": randomize(copy.deepcopy(loaded.model), seed=9)}
    result, images = evaluate_models(models, loaded.process, dataset, config, decoder(loaded))
    assert result.metrics["clip_score"].label == "CLIP score"
    captions = sample_captions(dataset, range(4), config.seed)
    told = sample_conditions(loaded.model, dataset, range(4), config.seed)["encoder_hidden_states"]
    encoder = open_text_encoder(loaded.loaded.pipeline, (16, 16))
    torch.testing.assert_close(encoder(captions)["encoder_hidden_states"], told, rtol=0, atol=0.01)
    for name in models:
        mean = load_clip(str(folder))(images[name], captions).mean().item()
        assert result.models[name]["clip_score"].value == pytest.approx(mean)
    heard = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "secateur.evaluation.metrics.clip.load_clip",
            lambda *where: lambda images, prompts: heard.extend(prompts) or torch.zeros(len(images)),
        )
        evaluate_models(models, loaded.process, dataset, config, decoder(loaded))
    assert heard == 2 * captions
    assert len(set(captions)) > 1
    arguments = ["evaluate", "digits-unet", "--data", "digits", "--out", str(tmp_path / "no"), "--metrics", "clip"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 1
    assert "needs a text-to-image model and captions" in capsys.readouterr().err
    with pytest.raises(ModelError, match=r"CLIP .*nothing cannot be loaded"):
        evaluate_models(models, loaded.process, dataset, replace(config, clip=ClipOptions(str(tmp_path / "nothing"))))
