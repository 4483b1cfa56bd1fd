"""Text-to-image pipelines: captions encoded once, guidance dropout, guided samples, whole compressions."""

import copy
import json
import os
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import FluxPipeline, PixArtAlphaPipeline, SanaPipeline

import folders
import secateur
from models import randomize
from pipelines import image_folder
from sampled import generate_images
from secateur import CutConfig, EvaluationConfig, RecoveryConfig, ScoringConfig
from secateur.base.errors import DataError, ModelError, TrainingError
from secateur.base.files import read_json
from secateur.cli import main
from secateur.data import LatentDataset, load_data
from secateur.data.autoencoder import latent_space
from secateur.data.conditions import accepts, null_conditions, sample_captions, sample_conditions
from secateur.data.text import open_text_encoder
from secateur.evaluation import ClipOptions, evaluate_models
from secateur.evaluation.metrics.clip import load_clip
from secateur.models.conditions import rows
from secateur.models.network import input_shape
from secateur.process.base import denoising_error
from secateur.process.sampling import initial_noise
from secateur.recovery.draws import draw_step
from secateur.results import Evaluation, read_result
from secateur.runs.data import decoder, encode_data, open_data
from secateur.runs.subject import open_subject
from text_pipelines import PIPELINES, clip_model, stable_diffusion

SCORING = ScoringConfig(num_timesteps=3, num_images=4)
RECOVERY = RecoveryConfig(steps=3, batch_size=4, checkpoint_every=2, log_every=1, objective="distillation")
EVALUATION = EvaluationConfig(
    metrics=("loss", "consistency"), num_images=4, num_inference_steps=2, guidance_scale=2.0, batch_size=3
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path):
    return image_folder(tmp_path / "images", captions=True)


def opened(folder, data):
    loaded = open_subject(str(folder), device="cpu")
    dataset = encode_data(open_data(str(data), loaded), loaded)
    assert isinstance(dataset, LatentDataset)
    return loaded, dataset


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


def test_a_table_is_encoded_as_the_folder_is(tmp_path, data):
    datasets = pytest.importorskip("datasets")
    stable_diffusion(tmp_path / "pipeline")
    rows = {"image": [str(path) for path in sorted(data.glob("*.png"))], "note": ["a cat", "a dog"] * 3}
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table.save_to_disk(tmp_path / "table")
    with pytest.raises(DataError, match=r"table has no captions, .* datasets:NAME,caption=COLUMN"):
        opened(tmp_path / "pipeline", tmp_path / "table")
    source = f"datasets:{tmp_path}/table,caption=note"
    (_, expected), (_, dataset) = opened(tmp_path / "pipeline", data), opened(tmp_path / "pipeline", source)
    assert dataset.latents.folder != expected.latents.folder
    assert dataset.text.folder == expected.text.folder  # of the same captions
    assert torch.equal(dataset.batch([4, 1]).sample, expected.batch([4, 1]).sample)
    assert opened(tmp_path / "pipeline", source)[1].latents.folder == dataset.latents.folder
    table.select([1, 0, 2, 3, 4, 5]).save_to_disk(tmp_path / "table-2")
    other = opened(tmp_path / "pipeline", f"datasets:{tmp_path}/table-2,caption=note")[1]
    assert other.latents.folder != dataset.latents.folder


def test_captions_are_encoded_once_and_again_when_they_changed(tmp_path, cache, data):
    pipeline = stable_diffusion(tmp_path / "pipeline")
    _, dataset = opened(tmp_path / "pipeline", data)
    captions = ("a cat", "a dog", "a cat", "a dog", "a cat", "a dog")
    assert dataset.captions == captions
    with torch.no_grad():
        expected, empty = pipeline.encode_prompt(list(captions), "cpu", 1, True)
    states = dataset.batch(range(6)).conditions["encoder_hidden_states"]
    torch.testing.assert_close(states.float(), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(dataset.null["encoder_hidden_states"].float(), empty[0], rtol=1e-3, atol=1e-3)
    assert sample_conditions(pipeline.unet, dataset, range(8))["encoder_hidden_states"].shape == (8, 8, 8)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(written) == 3  # latents, text, the empty prompt
    opened(tmp_path / "pipeline", data)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == written
    metadata = data / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a cat", "no cat"))
    _, changed = opened(tmp_path / "pipeline", data)
    assert changed.latents.folder == dataset.latents.folder
    assert not torch.equal(changed.batch([0]).conditions["encoder_hidden_states"], states[:1])


def test_killed_while_captions_are_encoded(tmp_path, monkeypatch, data):
    stable_diffusion(tmp_path / "pipeline")
    expected = opened(tmp_path / "pipeline", data)[1].batch(range(6)).conditions
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr("secateur.base.rows.CHUNK_ROWS", 2)
    monkeypatch.setattr("secateur.data.encode.AT_ONCE", 1)
    encoder = secateur.data.text.TextEncoder
    asked = []

    def until_killed(self, prompts):
        asked.append(prompts)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return original(self, prompts)

    original = encoder.__call__
    monkeypatch.setattr(encoder, "__call__", until_killed)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "pipeline", data)
    _, dataset = opened(tmp_path / "pipeline", data)
    assert len(asked) == 4 + 4  # captions 2 to 5, 2 once more
    for name, value in expected.items():
        torch.testing.assert_close(dataset.batch(range(6)).conditions[name], value, rtol=1e-3, atol=1e-3)


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


def test_bad_captions_are_one_line(tmp_path, data):
    stable_diffusion(tmp_path / "pipeline")
    metadata = data / "metadata.jsonl"
    lines = metadata.read_text().splitlines()

    def refused(*entries: str) -> str:
        metadata.write_text("\n".join(entries))
        with pytest.raises(DataError) as caught:
            opened(tmp_path / "pipeline", data)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "has no `text` for 5.png; give every image a caption" in refused(*lines[:-1])
    assert "has no `text` for 2 files, the first 0.png" in refused('{"file_name": "0.png", "text": 3}', *lines[1:-1])
    absent = json.dumps({"file_name": "gone.png", "text": "x"})
    assert "names gone.png, not among the images" in refused(*lines, absent)
    assert "names ../6.png" in refused(*lines, json.dumps({"file_name": "../6.png", "text": "x"}))
    assert "names /6.png" in refused(*lines, json.dumps({"file_name": "/6.png", "text": "x"}))
    assert "line 7 is not JSON" in refused(*lines, "{")
    assert "line 1 names no file" in refused('["0.png"]', *lines)
    assert "has no captions, which the model needs" in refused('{"file_name": "0.png", "label": 3}')
    metadata.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"metadata.jsonl cannot be read"):
        opened(tmp_path / "pipeline", data)
    os.remove(metadata)
    with pytest.raises(DataError, match="has no captions"):
        opened(tmp_path / "pipeline", data)


def test_captions_may_hold_any_character(tmp_path, data):
    metadata = data / "metadata.jsonl"
    text = "a\u2028cat\x85 and a\u2029dog"
    entries = [json.loads(line) | {"text": text} for line in metadata.read_text().splitlines()]
    metadata.write_text("\r\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), encoding="utf-8")
    assert load_data(data).captions == (text,) * 6


def test_another_pipeline_of_the_same_encoders_encodes_again(tmp_path, data):
    folder = tmp_path / "pipeline"
    PIPELINES["sdxl"](folder)
    _, dataset = opened(folder, data)
    index = read_json(folder / "model_index.json")
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    _, other = opened(folder, data)
    name = "encoder_hidden_states"
    assert dataset.null[name].count_nonzero() == 0 < other.null[name].count_nonzero()


def test_a_pipeline_in_memory_encodes_prompts_as_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    live, data = stable_diffusion(tmp_path / "pipeline"), image_folder(tmp_path / "images", captions=True)
    loaded = open_subject(live, device="cpu")
    dataset = encode_data(open_data(str(data), loaded), loaded)
    _, of_folder = opened(tmp_path / "pipeline", data)
    for name, value in dataset.batch(range(6)).conditions.items():
        torch.testing.assert_close(value, of_folder.batch(range(6)).conditions[name])
    metadata = data / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace("a cat", "a lion"))
    lions = encode_data(open_data(str(data), loaded), loaded)
    assert lions.fingerprint != dataset.fingerprint == replace(dataset, latents=lions.latents).fingerprint


def test_what_was_encoded_serves_the_pipeline_that_was_pruned(tmp_path, data):
    stable_diffusion(tmp_path / "pipeline")
    loaded, dataset = opened(tmp_path / "pipeline", data)
    copy = secateur.save_pipeline(loaded.loaded, loaded.model, tmp_path / "copy")
    assert opened(copy, data)[1].text.folder == dataset.text.folder


def test_what_has_no_text_side_is_refused(tmp_path, data):
    folder = tmp_path / "pipeline"
    stable_diffusion(folder)
    unet = open_subject(str(folder / "unet"), device="cpu")
    with pytest.raises(ModelError, match="give its whole pipeline"):
        open_data(str(data), unet)
    index = read_json(folder / "model_index.json")
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableDiffusionInpaintPipeline"}))
    loaded = open_subject(str(folder), device="cpu")
    with pytest.raises(ModelError, match="prompts of a StableDiffusionInpaintPipeline are not supported"):
        open_data(str(data), loaded)
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "tokenizer").rename(folder / "elsewhere")
    with pytest.raises(ModelError, match="tokenizer does not exist; give the whole pipeline"):
        opened(folder, data)
    (folder / "elsewhere").rename(folder / "tokenizer")
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"the text encoders of .* cannot be loaded"):
        opened(folder, data)


def test_rows_of_cached_conditions_keep_their_order(tmp_path, data):
    stable_diffusion(tmp_path / "pipeline")
    _, dataset = opened(tmp_path / "pipeline", data)
    together = dataset.batch(range(6)).conditions
    picked = dataset.batch([4, 1, 4]).conditions
    for name, value in rows(together, torch.tensor([4, 1, 4])).items():
        assert torch.equal(picked[name], value)


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
