"""Latents: encoded once, resumable, never stale; ranking, pruning, recovery and evaluation on them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, DiTPipeline
from PIL import Image

import folders
import secateur
from models import output
from pipelines import dit_pipeline, image_folder, images_of, ldm_pipeline, vae
from sampled import generate_images
from secateur import CutConfig, EvaluationConfig, RecoveryConfig, ScoringConfig
from secateur.base.errors import DataError, ModelError, SecateurError
from secateur.base.files import read_json
from secateur.base.seeds import Purpose, normal
from secateur.cli import main
from secateur.data import LatentDataset, pixels
from secateur.data.autoencoder import open_autoencoder
from secateur.data.conditions import null_conditions
from secateur.data.encode import POSTERIOR_SEED
from secateur.process.sampling import initial_noise
from secateur.runs.data import encode_data, open_data
from secateur.runs.subject import open_subject

SCORING = ScoringConfig(num_timesteps=3, num_images=4)
RECOVERY = RecoveryConfig(steps=3, batch_size=4, checkpoint_every=2, log_every=1)
EVALUATION = EvaluationConfig(metrics=("loss", "consistency"), num_images=4, num_inference_steps=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pipeline(tmp_path):
    return dit_pipeline(tmp_path / "pipeline")


def opened(folder: Path, data: Path) -> LatentDataset:
    loaded = open_subject(str(folder), device="cpu")
    dataset = encode_data(open_data(str(data), loaded), loaded)
    assert isinstance(dataset, LatentDataset)
    return dataset


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"scaling_factor": 1.5, "shift_factor": 0.1},
        {"scaling_factor": 0.5, "latents_mean": [0.3, -0.2], "latents_std": [2.0, 0.5]},
    ],
)
def test_latents_are_what_pipelines_train_on(tmp_path, changes):
    autoencoder = vae(**changes)
    dit_pipeline(tmp_path / "pipeline", autoencoder)
    data = image_folder(tmp_path / "images", classes=True)
    dataset = opened(tmp_path / "pipeline", data)
    noise = normal((2, 8, 8), range(6), POSTERIOR_SEED, Purpose.POSTERIOR)
    with torch.no_grad():
        posterior = autoencoder.encode(images_of(data)).latent_dist
    drawn = posterior.mean + posterior.std * noise
    if "latents_mean" in changes:
        shift, std = (torch.tensor(changes[name]).view(2, 1, 1) for name in ("latents_mean", "latents_std"))
        expected = (drawn - shift) * 0.5 / std
    else:
        expected = (drawn - changes.get("shift_factor", 0.0)) * changes.get("scaling_factor", 0.5)
    batch = dataset.batch(range(6))
    torch.testing.assert_close(batch.sample, expected, rtol=1e-5, atol=1e-5)
    assert batch.conditions["class_labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (dataset.shape, dataset.class_names, len(dataset)) == ((2, 8, 8), ("cat", "dog"), 6)
    assert torch.equal(dataset.batch([5, 1]).sample, batch.sample[[5, 1]])
    assert pixels(dataset).shape == (3, 16, 16)
    opened_again = open_autoencoder(tmp_path / "pipeline" / "vae")
    with torch.no_grad():
        decoded = autoencoder.decode(drawn).sample
    torch.testing.assert_close(opened_again.decode(batch.sample), decoded, rtol=1e-4, atol=1e-4)


def test_encoding_happens_once_and_again_when_anything_changed(tmp_path, cache, pipeline):
    data = image_folder(tmp_path / "images", classes=True)
    first = opened(tmp_path / "pipeline", data).latents.folder
    written = files(cache)
    assert opened(tmp_path / "pipeline", data).latents.folder == first
    assert files(cache) == written
    picture = data / "cat" / "0.png"
    os.utime(picture, ns=(1, 1))
    assert opened(tmp_path / "pipeline", data).latents.folder == first  # the same contents, copied
    Image.new("RGB", (16, 16), "red").save(picture)
    touched = opened(tmp_path / "pipeline", data)
    assert touched.latents.folder != first
    vae(scaling_factor=2.0).save_pretrained(tmp_path / "pipeline" / "vae")
    rescaled = opened(tmp_path / "pipeline", data)
    torch.testing.assert_close(rescaled.batch([0]).sample, 4 * touched.batch([0]).sample)


def test_a_pipeline_in_memory_encodes_as_its_folder(tmp_path):
    live, data = dit_pipeline(tmp_path / "live"), image_folder(tmp_path / "images", classes=True)
    loaded = open_subject(live, device="cpu")
    dataset = encode_data(open_data(str(data), loaded), loaded)
    of_folder = opened(tmp_path / "live", data)
    torch.testing.assert_close(dataset.batch(range(6)).sample, of_folder.batch(range(6)).sample)


def test_a_killed_encoding_resumes_with_the_unfinished_shard(tmp_path, monkeypatch, pipeline):
    monkeypatch.setattr("secateur.base.rows.CHUNK_ROWS", 2)
    monkeypatch.setattr("secateur.data.encode.AT_ONCE", 1)
    data = image_folder(tmp_path / "images", count=5)
    whole = opened(tmp_path / "pipeline", data).batch(range(5)).sample
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "another"))
    encoded = []

    def encode_until_killed(self, images, noise):
        encoded.append(images)
        if len(encoded) == 4:
            raise KeyboardInterrupt
        return original(self, images, noise)

    original = secateur.data.autoencoder.Autoencoder.encode
    monkeypatch.setattr("secateur.data.autoencoder.Autoencoder.encode", encode_until_killed)
    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path / "pipeline", data)
    assert len(list((tmp_path / "another").rglob("0*.safetensors"))) == 1
    dataset = opened(tmp_path / "pipeline", data)
    assert len(encoded) == 4 + 3  # image 2 again
    assert torch.equal(dataset.batch(range(5)).sample, whole)
    assert not list((tmp_path / "another").rglob("*.tmp"))


def test_a_damaged_shard_and_a_full_disk_are_one_line(tmp_path, cache, monkeypatch, pipeline):
    data = image_folder(tmp_path / "images")
    dataset = opened(tmp_path / "pipeline", data)
    (shard,) = dataset.latents.folder.glob("0*.safetensors")
    os.truncate(shard, 100)
    with pytest.raises(DataError, match=r"00000000-.*safetensors cannot be read: .*remove it"):
        dataset.batch([0])
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "full"))
    usage = type("Usage", (), {"free": 10})()
    monkeypatch.setattr("secateur.data.encode.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(SecateurError, match="GB are free; set SECATEUR_CACHE"):
        opened(tmp_path / "pipeline", data)


def test_a_vae_of_other_latents_and_a_model_folder_alone_are_refused(tmp_path, pipeline):
    data = image_folder(tmp_path / "images")
    alone = open_subject(str(tmp_path / "pipeline" / "transformer"), "ddpm", device="cpu")
    with pytest.raises(DataError, match="3-channel images, the model takes 2 channels"):
        open_data(str(data), alone)
    vae(latent_channels=3).save_pretrained(tmp_path / "pipeline" / "vae")
    with pytest.raises(ModelError, match="has 3 latent channels, the model takes 2"):
        opened(tmp_path / "pipeline", data)
    config = tmp_path / "pipeline" / "vae" / "config.json"
    config.write_text(json.dumps(read_json(config) | {"_class_name": "AutoencoderTiny"}))
    with pytest.raises(
        ModelError, match="holds a AutoencoderTiny; latents are supported of AutoencoderKL, AutoencoderDC, VQModel"
    ):
        opened(tmp_path / "pipeline", data)


def test_samples_are_those_of_the_pipeline_itself(tmp_path, pipeline):
    loaded = open_subject(str(tmp_path / "pipeline"), device="cpu")
    decode = open_autoencoder(loaded.loaded.vae).decode
    labels = {"class_labels": torch.tensor([3])}
    options = {"num_inference_steps": 4, "guidance_scale": 2.0, "null": null_conditions(loaded.model)}
    drawn = generate_images(loaded.model, loaded.process, [7], (2, 8, 8), labels, decode=decode, **options)
    latents = initial_noise([7], (2, 8, 8))
    assert drawn.shape == (1, 3, 16, 16)
    pipeline.scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            both = pipeline.transformer(latents.repeat(2, 1, 1, 1), t.expand(2), torch.tensor([3, 10])).sample[:, :2]
            guided = both[1] + 2 * (both[0] - both[1])
            latents = pipeline.scheduler.step(guided[None], t, latents).prev_sample
        expected = pipeline.vae.decode(latents / 0.5).sample.clamp(-1, 1)
    torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)


def test_ldm_is_decoded_by_its_vq_model(tmp_path):
    pipeline = ldm_pipeline(tmp_path / "pipeline")
    data = image_folder(tmp_path / "images", classes=True)
    dataset = opened(tmp_path / "pipeline", data)
    with torch.no_grad():
        expected = pipeline.vqvae.encode(images_of(data)).latents * 0.5
    torch.testing.assert_close(dataset.batch(range(6)).sample, expected, rtol=1e-5, atol=1e-5)
    images = replace(EVALUATION, metrics=None)
    run = folders.evaluate(
        str(tmp_path / "pipeline"), data=str(data), out=tmp_path / "run", evaluation=images, device="cpu"
    )
    assert read_json(run / "evaluation" / "evaluation.json")["data"]["shape"] == [3, 16, 16]


@pytest.mark.slow
def test_compress_works_in_latent_space_and_returns_a_pipeline(tmp_path, capsys, pipeline):
    data = image_folder(tmp_path / "images", classes=True)
    arguments = {
        "target": "blocks=2",
        "recipe": "diff-pruning",
        "data": str(data),
        "criterion": "loss-change",
        "scoring": SCORING,
        "recovery": replace(RECOVERY, objective="distillation"),
        "evaluation": EVALUATION,
        "cut": CutConfig(granularity="depth"),
        "component": "transformer",
        "device": "cpu",
    }
    folders.compress(str(tmp_path / "pipeline"), out=tmp_path / "run", dry_run=True, **arguments)
    assert "latents    to encode once: about 0.0 MB in" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "latents").exists()
    run = folders.compress(str(tmp_path / "pipeline"), out=tmp_path / "run", **arguments)
    numbers = read_json(run / "evaluation" / "evaluation.json")
    assert set(numbers["models"]) == {"dense", "pruned", "recovered"}
    assert numbers["data"]["shape"] == [3, 16, 16]
    whole = secateur.load_pipeline(run / "pipeline")
    assert isinstance(whole, DiTPipeline)
    assert len(whole.transformer.transformer_blocks) == 2
    plain = DiffusionPipeline.from_pretrained(run / "pipeline")
    assert torch.equal(output(plain.transformer), output(whole.transformer))
    assert torch.equal(output(plain.transformer), output(secateur.from_pretrained(run / "model")))
    shown = plain(
        [1], guidance_scale=1.0, num_inference_steps=2, generator=torch.manual_seed(0), output_type="np"
    ).images
    assert shown.shape == (1, 16, 16, 3)
    # The new pipeline has the same VAE, so nothing is encoded again.
    before = files(tmp_path / "cache")
    opened(run / "pipeline", data)
    assert files(tmp_path / "cache") == before


def test_the_command_line_encodes_ahead_and_refuses_in_one_line(tmp_path, capsys, monkeypatch, pipeline):
    data = image_folder(tmp_path / "images", classes=True)
    folder = str(tmp_path / "pipeline")

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(list(arguments))
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "RANK is not set" in refused("finetune", folder, "--data", str(data), "--out", str(tmp_path / "t"))
    monkeypatch.delenv("WORLD_SIZE")
    main(["encode", folder, "--data", str(data), "--device", "cpu"])
    assert "6 images as (2, 8, 8)" in capsys.readouterr().out
    flipped = ["--recovery.horizontal-flip", "--data", str(data), "--out", str(tmp_path / "run")]
    assert "mirrored latents" in refused("finetune", folder, *flipped)
    assert "takes images as they are" in refused("encode", "digits-unet", "--data", "digits")
    assert "lists no unet; it has" in refused("encode", folder, "--data", "digits", "--component", "unet")
    main(["sample", folder, "--out", str(tmp_path / "grid.png"), "--num-images", "4", "--num-inference-steps", "2"])
    assert (tmp_path / "grid.png").is_file()
    alone = str(tmp_path / "pipeline" / "transformer")
    assert "2-channel latents and no VAE" in refused("sample", alone, "--process", "ddpm", "--out", "x.png")
    assert "has no use for a prompt" in refused("sample", folder, "--out", "x.png", "--prompt", "a cat")


@pytest.mark.torture
def test_two_processes_encode_a_part_each(tmp_path, pipeline, monkeypatch):
    data = image_folder(tmp_path / "images", classes=True)
    command = ["-m", "secateur", "encode", str(tmp_path / "pipeline"), "--data", str(data), "--device", "cpu"]
    for name, launcher in (
        ("one", []),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        environment = {**os.environ, "SECATEUR_CACHE": str(tmp_path / name), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *launcher, *command], env=environment, check=True, timeout=300)
    one, two = (sorted((tmp_path / name).rglob("*.safetensors")) for name in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two] != []
