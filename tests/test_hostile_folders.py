"""Nothing in a model folder is run or unpickled, points outside, or takes more memory than its size."""

import builtins
import os
import pickle
import resource
import runpy
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import secateur
from models import dit, half, output, unet
from pipelines import dit_pipeline
from saved_folders import change, dense_model, narrower_model, pipeline_of_pixels, refused
from secateur.base.errors import ModelError
from secateur.base.files import read_json, write_json
from secateur.io.checkpoint import CONFIG, from_pretrained, save_pretrained
from secateur.io.files import check_file
from secateur.io.manifest import MANIFEST, POINTER_KEY, Manifest, apply_cut
from secateur.io.pipeline import load
from secateur.io.weights import WEIGHTS, WEIGHTS_INDEX
from secateur.structure import Cut

model = pytest.fixture(dense_model)
pruned = pytest.fixture(narrower_model)
pixels = pytest.fixture(pipeline_of_pixels)

NAMES = ("stranger", "unet", "scheduler", "modeling", "pipeline", "UNet2DModel", "custom")


def change_manifest(folder, edit):
    """Let `edit` change the manifest, and let the config name the changed one."""
    manifest = read_json(folder / MANIFEST)
    edit(manifest)
    write_json(folder / MANIFEST, manifest)
    digest = Manifest(manifest["base"], tuple(manifest["steps"])).digest
    change(folder / CONFIG, **{POINTER_KEY: {"file": MANIFEST, "sha256": digest}})


# Nothing runs


@pytest.mark.parametrize(
    "entry",
    [
        {"unet": ["stranger", "Network"]},
        {"scheduler": ["stranger", "Scheduler"]},
        {"unet": ["stranger.inner", "Network"]},
        {"unet": ["os", "system"]},
        {"unet": ["secateur", "cli"]},
        {"unet": ["diffusers.utils", "import_utils"]},
        {"unet": ["diffusers", "models.UNet2DModel"]},
        {"_class_name": ["stranger", "Pipeline"]},
        {"_class_name": "Stranger"},
        {"unet": ["diffusers", ["UNet2DModel"]]},
    ],
)
def test_an_index_names_classes_of_diffusers_and_transformers_only(pixels, monkeypatch, entry):
    change(pixels / "model_index.json", **entry)
    (pixels / "stranger.py").write_text("raise SystemExit('the code of a model folder ran')")
    monkeypatch.syspath_prepend(str(pixels))
    refused(lambda: secateur.load_pipeline(pixels), "model_index.json")
    assert "stranger" not in sys.modules


@pytest.mark.parametrize("kind", ["classes", "text"])
def test_loading_imports_and_unpickles_nothing_of_the_folder(tmp_path, monkeypatch, kind):
    make = dit_pipeline if kind == "classes" else pytest.importorskip("text_pipelines").stable_diffusion
    make(tmp_path / "pipeline")
    folders = [tmp_path / "pipeline", *(each for each in (tmp_path / "pipeline").iterdir() if each.is_dir())]
    for folder in folders:
        for name in NAMES:
            (folder / f"{name}.py").write_text("raise SystemExit('the code of a model folder ran')")
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "weights.pt"):
            (folder / name).write_bytes(pickle.dumps(print))
        monkeypatch.syspath_prepend(str(folder))
    told = []
    monkeypatch.setattr(torch, "load", lambda *_, **__: told.append("torch.load"))
    monkeypatch.setattr(pickle, "Unpickler", lambda *_, **__: told.append("pickle"))
    monkeypatch.setattr(pickle, "load", lambda *_, **__: told.append("pickle"))
    monkeypatch.setattr(builtins, "input", lambda *_: told.append("a question"))
    secateur.load_pipeline(tmp_path / "pipeline")
    loaded = load(tmp_path / "pipeline")
    secateur.save_pipeline(loaded, apply_cut(loaded.model, half(loaded.model)), tmp_path / "out")
    secateur.load_pipeline(tmp_path / "out")
    assert not told
    inside = [
        name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(tmp_path))
    ]
    assert not inside
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".py", ".bin", ".pt")]


@pytest.mark.parametrize("name", ["weights.bin", "../weights.safetensors", "/etc/weights.safetensors", ".safetensors"])
def test_weights_are_safetensors_beside_their_index(model, name):
    weights = load_file(model / WEIGHTS)
    (model / WEIGHTS).unlink()
    torch.save(weights, model / "weights.bin")
    write_json(model / WEIGHTS_INDEX, {"metadata": {}, "weight_map": dict.fromkeys(weights, name)})
    refused(lambda: from_pretrained(model), name)


def test_pickled_weights_alone_are_refused(model):
    torch.save(load_file(model / WEIGHTS), model / "diffusion_pytorch_model.bin")
    (model / WEIGHTS).unlink()
    refused(lambda: from_pretrained(model), "safetensors", "never opened")


def test_the_current_folder_is_not_where_modules_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", *sys.path])
    monkeypatch.setattr(sys, "argv", ["secateur", "--help"])
    runpy.run_module("secateur", run_name="__main__")
    assert str(tmp_path) not in sys.path
    assert "" not in sys.path


# Nothing outside is reached


def test_links_out_of_a_pipeline_are_refused(pixels, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (pixels / "notes.txt").symlink_to(tmp_path / "secret.txt")
    loaded = load(pixels)
    refused(lambda: secateur.save_pipeline(loaded, loaded.model, tmp_path / "out"), "notes.txt", "out of")
    refused(lambda: secateur.load_pipeline(pixels), "notes.txt")
    assert not (tmp_path / "out").exists()


def test_links_in_a_circle_are_refused(pixels, tmp_path):
    (pixels / "a").symlink_to(".")
    (pixels / "b").symlink_to(".")
    loaded = load(pixels)
    refused(lambda: secateur.save_pipeline(loaded, loaded.model, tmp_path / "out"), "links to the folder")
    (pixels / "a").unlink()
    (pixels / "b").unlink()
    (pixels / "a").symlink_to("b")
    (pixels / "b").symlink_to("a")
    refused(lambda: secateur.save_pipeline(loaded, loaded.model, tmp_path / "out"), "cannot be read")


def test_links_within_the_folder_are_followed(pixels, tmp_path):
    (pixels / "unet" / WEIGHTS).rename(pixels / "weights")
    (pixels / "unet" / WEIGHTS).symlink_to(pixels / "weights")
    loaded = load(pixels)
    assert torch.equal(output(loaded.model), output(unet()))
    secateur.load_pipeline(secateur.save_pipeline(loaded, loaded.model, tmp_path / "out"))


def test_a_snapshot_of_the_hub_cache_is_links_into_its_blobs(pixels, tmp_path):
    repository = tmp_path / "models--someone--model"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(each for each in sorted(pixels.rglob("*")) if each.is_file()):
        place = snapshot / path.relative_to(pixels)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(number))
        place.symlink_to(Path(os.path.relpath(blobs / str(number), place.parent)))
    loaded = load(snapshot)
    assert torch.equal(output(from_pretrained(snapshot / "unet")), output(unet()))
    copied = secateur.save_pipeline(loaded, loaded.model, tmp_path / "out")
    assert not any(path.is_symlink() for path in copied.rglob("*"))
    (snapshot / "unet" / CONFIG).unlink()
    (snapshot / "unet" / CONFIG).symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "elsewhere.json").write_text("{}")
    refused(lambda: load(snapshot), "out of")


@pytest.mark.parametrize("kind", ["pipe", "device", "nothing"])
def test_only_regular_files_are_read(model, kind):
    path = model / WEIGHTS
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    refused(lambda: from_pretrained(model), WEIGHTS)
    with pytest.raises(ModelError):
        check_file(path, model)


# Nothing costs more than it weighs


@pytest.mark.parametrize(
    "entries",
    [
        {"layers_per_block": 20_000},
        {"layers_per_block": 10**12},
        {"block_out_channels": [8] * 20_000, "down_block_types": ["DownBlock2D"] * 20_000},
        {"block_out_channels": [10**6, 10**6]},
        {"sample_size": 10**6},
        {"sample_size": [8, -1]},
        {"num_class_embeds": 10**9},
    ],
)
def test_a_config_is_held_against_the_weights(model, entries):
    change(model / CONFIG, **entries)
    cheaply(lambda: refused(lambda: from_pretrained(model), "model"))


def test_a_manifest_is_held_against_the_weights(tmp_path, pruned):
    shallow = save_pretrained(apply_cut(dit(), Cut({}, ("transformer_blocks.0",))), tmp_path / "shallow")
    cheaply(partial(refused_with, shallow, lambda base: base.update(num_layers=100_000)))
    cheaply(partial(refused_with, shallow, lambda base: base.update(sample_size=2**13)))
    cheaply(partial(refused_with, shallow, lambda base: base.update(sample_size=2**11, patch_size=1)))
    cheaply(partial(refused_with, pruned, lambda base: base.update(norm_num_groups=0)))
    cheaply(partial(refused_with, pruned, lambda base: base.update(block_out_channels=[10**6, 10**6])))


def refused_with(folder, edit):
    before = {name: (folder / name).read_text() for name in (MANIFEST, CONFIG)}
    change_manifest(folder, lambda manifest: edit(manifest["base"]["config"]))
    refused(lambda: from_pretrained(folder), folder.name)
    for name, text in before.items():
        (folder / name).write_text(text)


def test_a_manifest_of_many_cuts_is_replayed_in_seconds(pruned):
    empty = {"kind": "cut", "dims": {}, "removed_blocks": []}
    nothing = lambda name, dim: {"kind": "cut", "dims": {name: {**dim, "size": len(dim["kept"])}}, "removed_blocks": []}  # noqa: E731

    def edit(manifest):
        (step,) = manifest["steps"]
        again = [nothing(name, {"kept": list(range(len(dim["kept"])))}) for name, dim in step["dims"].items()]
        manifest["steps"] = [empty] * 5_000 + [step] + again * 100

    change_manifest(pruned, edit)
    cheaply(lambda: from_pretrained(pruned))
    assert torch.equal(output(from_pretrained(pruned)), output(apply_cut(unet(), half(unet()))))


def test_a_manifest_of_many_cuts_that_undo_each_other_is_refused(tmp_path):
    folder = save_pretrained(apply_cut(dit(), half(dit())), tmp_path / "model")

    def edit(manifest):
        names = list(manifest["steps"][0]["dims"])[:2]
        one = [{"kind": "cut", "dims": {name: {"size": 2, "kept": [0]}}, "removed_blocks": []} for name in names]
        manifest["steps"] += one * 3_000

    change_manifest(folder, edit)
    cheaply(lambda: refused(lambda: from_pretrained(folder), "model"))


def cheaply(call):
    """It takes seconds, and less than 200 MB more."""
    before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    call()
    assert time.perf_counter() - begun < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
