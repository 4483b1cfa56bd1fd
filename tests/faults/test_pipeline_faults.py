"""Parts of a pipeline that load and do not work: one line names the part, whatever the libraries below raise."""

import json

import pytest

import secateur
from pipelines import dit_pipeline, image_folder
from secateur.base.errors import ModelError
from secateur.base.files import read_json, write_json
from text_pipelines import stable_diffusion


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "entries",
    [
        {"latent_channels": "x"},
        {"latent_channels": 0},
        {"block_out_channels": None, "down_block_types": None},
        {"in_channels": [3]},
        {"scaling_factor": "1"},
        {"latents_mean": [0.0], "latents_std": [1.0]},
        {"sample_size": -1, "norm_num_groups": 0},
    ],
    ids=repr,
)
def test_a_config_of_an_autoencoder_that_is_none_is_one_line(tmp_path, entries):
    dit_pipeline(tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "vae" / "config.json"
    write_json(path, read_json(path) | entries)
    with pytest.raises(ModelError, match="vae") as raised:
        secateur.encode(str(tmp_path / "pipeline"), data=str(image_folder(tmp_path / "images", classes=True)))
    assert "\n" not in str(raised.value)


def test_what_a_config_of_an_autoencoder_leaves_out_is_the_default_of_its_class(tmp_path):
    dit_pipeline(tmp_path / "pipeline")
    path = tmp_path / "pipeline" / "vae" / "config.json"
    config = read_json(path)
    assert config.pop("shift_factor") is None
    write_json(path, config)
    secateur.encode(str(tmp_path / "pipeline"), data=str(image_folder(tmp_path / "images", classes=True)))


@pytest.mark.parametrize(
    ("file", "entries"),
    [
        ("tokenizer/tokenizer_config.json", {"model_max_length": 2**70}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 80}),
        ("text_encoder/config.json", {"vocab_size": 3}),
        ("text_encoder/config.json", {"num_hidden_layers": 2**70}),
    ],
    ids=repr,
)
def test_text_encoders_that_do_not_work_are_one_line(tmp_path, file, entries):
    stable_diffusion(tmp_path / "pipeline")
    path = tmp_path / "pipeline" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    with pytest.raises(ModelError, match="pipeline") as raised:
        secateur.encode(str(tmp_path / "pipeline"), data=str(image_folder(tmp_path / "images", captions=True)))
    assert "\n" not in str(raised.value)
