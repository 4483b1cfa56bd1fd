"""Folders that are damaged, incomplete, or no models: one clear line each, with what is there instead."""

import json

import pytest
from safetensors.torch import load_file, save_file

from models import dit, half, unet
from saved_folders import DDPM
from secateur.base.errors import ModelError
from secateur.io.checkpoint import from_pretrained, save_pretrained
from secateur.io.manifest import MANIFEST, apply_cut
from secateur.io.pipeline import load
from secateur.io.weights import WEIGHTS


@pytest.fixture
def saved(tmp_path):
    model = apply_cut(unet(), half(unet()))
    return save_pretrained(model, tmp_path / "model", DDPM)


def edit(folder, name, change):
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


def hostile_unit(value):
    next(iter(value["steps"][0]["dims"].values()))["kept"][-1] = 10**9


def hostile_class(value):
    value["base"]["class"] = "DiffusionPipeline"


def stringly(value):
    value["steps"] = "cut"


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200]),
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / MANIFEST).write_text("[]"),
        lambda folder: (folder / MANIFEST).write_text("{}"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: edit(folder, MANIFEST, hostile_unit),
        lambda folder: edit(folder, MANIFEST, hostile_class),
        lambda folder: edit(folder, MANIFEST, stringly),
        lambda folder: edit(folder, MANIFEST, lambda value: value.update(format_version=99)),
        lambda folder: edit(folder, MANIFEST, lambda value: value["base"]["config"].update(block_out_channels=3)),
        lambda folder: drop_one_tensor(folder),
        lambda folder: (folder / "scheduler_config.json").unlink(),
        lambda folder: (folder / "scheduler_config.json").write_text('{"_class_name": "Strange"}'),
        lambda folder: (folder / "scheduler_config.json").write_text('{"beta_schedule": "nonsense"}'),
    ],
)
def test_damaged_folders_give_one_clear_line(saved, damage):
    damage(saved)
    with pytest.raises(ModelError) as caught:
        load(saved)
    assert "\n" not in str(caught.value)


def drop_one_tensor(folder):
    weights = load_file(folder / WEIGHTS)
    weights.pop("conv_in.weight")
    save_file(weights, folder / WEIGHTS)


def test_a_dense_folder_that_lacks_a_tensor_is_refused(tmp_path):
    save_pretrained(unet(), tmp_path / "dense", DDPM)
    drop_one_tensor(tmp_path / "dense")
    with pytest.raises(ModelError, match="lack"):
        load(tmp_path / "dense")


def test_a_folder_that_is_not_there_is_answered_with_those_that_are(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="did you mean digits-unet"):
        load("digits-unit")
    monkeypatch.chdir(tmp_path)
    save_pretrained(dit(), "run/pruned")
    monkeypatch.setattr("secateur.io.locate.snapshot_download", lambda *_, **__: 1 / 0)
    for name, said in (("run/model", "; run holds run/pruned$"), ("run/pruend", "; did you mean run/pruned\\?$")):
        with pytest.raises(ModelError, match=said):
            load(name)


def test_unknown_places_and_architectures(tmp_path):
    with pytest.raises(ModelError, match="neither a folder nor a hub id"):
        load(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "Strange"}')
    (tmp_path / "other" / "scheduler_config.json").write_text(json.dumps(DDPM))
    with pytest.raises(ModelError, match="UNet2DModel"):
        load(tmp_path / "other")


def test_a_run_is_not_a_model_and_says_where_its_model_is(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text('{"command": "finetune"}')
    with pytest.raises(ModelError, match=f"is the folder of a run, not of a model; give {tmp_path}/run/model"):
        from_pretrained(tmp_path / "run")
