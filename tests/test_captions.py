"""Captions are encoded once: resumed, again when they changed, in any order; bad ones are one line."""

import json
import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

import secateur
from caches import own_cache
from pipelines import image_folder
from secateur.base.errors import DataError, ModelError
from secateur.base.files import read_json
from secateur.data import load_data
from secateur.data.conditions import sample_conditions
from secateur.models.conditions import rows
from secateur.runs.data import encode_data, open_data
from secateur.runs.subject import open_subject
from text_pipelines import PIPELINES, captioned, opened, stable_diffusion

cache = pytest.fixture(own_cache, autouse=True)
data = pytest.fixture(captioned)


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
