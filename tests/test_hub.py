"""The hub: what is uploaded, which files are fetched, and its arguments in every function."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from huggingface_hub.utils import filter_repo_objects

import secateur
from models import autoencoder, half, output, unet
from saved_folders import DDPM
from secateur.base.errors import ModelError
from secateur.cli import main
from secateur.io.checkpoint import from_pretrained, save_pretrained
from secateur.io.locate import locate
from secateur.io.manifest import MANIFEST, apply_cut
from secateur.io.pipeline import load
from secateur.io.weights import WEIGHTS


def test_push_to_hub_uploads_what_save_pretrained_writes(monkeypatch):
    seen = {}

    class Hub:
        def __init__(self, token):
            seen["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            seen["repo"] = (repo_id, private, exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message):
            seen["files"] = {path.name for path in folder_path.iterdir()}
            seen["card"] = (folder_path / "README.md").read_text()
            return "the commit"

    monkeypatch.setattr("secateur.io.hub.HfApi", Hub)
    model = apply_cut(unet(), half(unet()))
    assert secateur.push_to_hub(model, "someone/model", private=True, token="secret") == "the commit"
    assert seen["repo"] == ("someone/model", True, True)
    assert seen["files"] == {"config.json", WEIGHTS, MANIFEST, "README.md"}
    assert "from_pretrained('someone/model')" in seen["card"]


def test_a_hub_id_fetches_the_small_files_first_and_only_the_wanted_weights(tmp_path, monkeypatch):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    asked = []

    def download(repo_id, allow_patterns, ignore_patterns=None):
        asked.append((repo_id, allow_patterns))
        return str(tmp_path / "pipeline")

    monkeypatch.setattr("secateur.io.locate.snapshot_download", download)
    assert torch.equal(output(from_pretrained("someone/model")), output(unet()))
    assert asked == [("someone/model", ["*.json"]), ("someone/model", ["*.json", "unet/*.safetensors"])]
    assert torch.equal(output(load("someone/model").model), output(unet()))
    assert asked[2:] == [
        ("someone/model", ["*.json"]),
        ("someone/model", ["*.json", "*/*.safetensors", "tokenizer*/*", "processor*/*"]),
    ]
    with pytest.raises(ModelError, match=r"lists no transformer; it has scheduler, unet"):
        load("someone/model", component="transformer")
    assert len(asked) == 5


def test_of_a_variant_only_its_weights_are_fetched_and_plain_ones_of_parts_without_it(tmp_path, monkeypatch):
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    pipeline = DDPMPipeline(unet(), DDPMScheduler())
    pipeline.save_pretrained(hub)
    pipeline.save_pretrained(hub, variant="fp16")
    autoencoder().save_pretrained(hub / "vae")
    index = json.loads((hub / "model_index.json").read_text())
    (hub / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}))

    def download(repo_id, allow_patterns, ignore_patterns=None):
        for file in filter_repo_objects(
            [path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file()],
            allow_patterns=allow_patterns,
            ignore_patterns=ignore_patterns,
        ):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            (cache / file).write_bytes((hub / file).read_bytes())
        return str(cache)

    monkeypatch.setattr("secateur.io.locate.snapshot_download", download)
    from_pretrained("someone/model", variant="fp16")
    assert weights_in(cache) == {"unet/diffusion_pytorch_model.fp16.safetensors"}
    locate("someone/model", variant="fp16", whole=True)
    assert weights_in(cache) == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }


def weights_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}


def test_every_function_takes_the_hubs_arguments(tmp_path, monkeypatch):
    (tmp_path / "there" / "inside").mkdir(parents=True)
    DDPMPipeline(unet().half(), DDPMScheduler()).save_pretrained(tmp_path / "there" / "inside", variant="fp16")
    save_pretrained(unet(), tmp_path / "there" / "dense", DDPM)
    asked = []

    def download(repo_id, allow_patterns, ignore_patterns=None, **hub):
        asked.append((repo_id, hub))
        return str(tmp_path / "there" / ("dense" if repo_id.endswith("dense") else ""))

    monkeypatch.setattr("secateur.io.locate.snapshot_download", download)
    hub = {"revision": "abc", "token": "secret", "cache_dir": tmp_path / "cache"}
    model = {"subfolder": "inside", "variant": "fp16", "torch_dtype": torch.float64, "device": "cpu", **hub}
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64) * 2 - 1
    pruned = secateur.prune("someone/model", target="macs=60%", criterion="magnitude", **model)
    assert next(pruned.parameters()).dtype == torch.float64
    assert secateur.inspect("someone/model", **model).architecture == "UNet2DModel"
    drawn = secateur.sample("someone/model", num_images=1, num_inference_steps=1, **model)
    assert drawn.shape == (1, 1, 8, 8)
    assert {repo_id for repo_id, _ in asked} == {"someone/model"}
    assert all(given == hub for _, given in asked)
    asked.clear()
    secateur.evaluate("someone/model", reference="someone/dense", data=images, metrics=("loss",), **model)
    of_reference = [given for repo_id, given in asked if repo_id == "someone/dense"]
    assert of_reference == [{name: hub[name] for name in ("token", "cache_dir")}] * len(of_reference) != []
    asked.clear()
    options = {name: value for name, value in model.items() if name not in ("torch_dtype",)}
    assert isinstance(secateur.load_pipeline("someone/model", torch_dtype=torch.float32, **options), DDPMPipeline)
    assert all(given == hub for _, given in asked)
    main(["inspect", "someone/model", "--subfolder", "inside", "--variant", "fp16", "--revision", "v1"])
    assert asked[-1][1] == {"revision": "v1"}


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
    def offline(repo_id, allow_patterns):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("secateur.io.locate.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"the hub did not give it: no route$"):
        load("someone/model")
