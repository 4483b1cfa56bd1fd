"""What is saved over other models, after cuts by hand, and by diffusers; diffusers loads it."""

import copy
import json
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, DiTPipeline, FluxTransformer2DModel

import secateur
from models import dit, half, output, unet
from pipelines import dit_pipeline
from saved_folders import dense_model, narrower_model, pipeline_of_pixels, refused
from secateur.base.files import read_json
from secateur.io.checkpoint import CONFIG, from_pretrained, save_pretrained
from secateur.io.manifest import MANIFEST, apply_cut, manifest_of
from secateur.io.pipeline import load
from secateur.io.weights import WEIGHTS
from secateur.models.registry import describe
from secateur.structure import Cut, remove

model = pytest.fixture(dense_model)
pruned = pytest.fixture(narrower_model)
pixels = pytest.fixture(pipeline_of_pixels)


# What a save does not write is not believed


def test_no_model_that_was_saved_before_is_believed(tmp_path):
    folder, narrow = tmp_path / "model", apply_cut(unet(), half(unet()))
    save_pretrained(narrow, folder)
    for save in (save_pretrained, lambda model, folder: model.save_pretrained(folder)):
        save(unet(), folder)
        assert manifest_of(from_pretrained(folder)) is None
        unet().save_pretrained(folder, max_shard_size="2KB")
        (folder / WEIGHTS).unlink(missing_ok=True)
        save(narrow, folder)
        assert torch.equal(output(from_pretrained(folder)), output(narrow))
    other = apply_cut(unet(), Cut({}, ("mid_block.attentions.0",)))
    save_pretrained(other, tmp_path / "other")
    (folder / MANIFEST).write_text((tmp_path / "other" / MANIFEST).read_text())
    refused(lambda: from_pretrained(folder), MANIFEST)


def test_weights_that_are_there_twice_are_refused(model):
    unet().save_pretrained(model / "shards", max_shard_size="2KB")
    for path in (model / "shards").glob("*.safetensors*"):
        path.rename(model / path.name)
    refused(lambda: from_pretrained(model), "twice")


def test_a_pipeline_is_saved_over_another(tmp_path, pixels):
    loaded = load(pixels)
    secateur.save_pipeline(loaded, apply_cut(copy.deepcopy(loaded.model), half(loaded.model)), tmp_path / "out")
    assert read_json(tmp_path / "out" / "model_index.json")["unet"] == ["secateur", "PrunedUNet2DModel"]
    secateur.save_pipeline(loaded, loaded.model, tmp_path / "out")
    assert torch.equal(output(secateur.load_pipeline(tmp_path / "out").unet), output(unet()))
    assert not (tmp_path / "out" / "unet" / MANIFEST).exists()


# Cuts by hand, and diffusers' own loaders and savers


def test_a_cut_by_hand_is_written_down(tmp_path):
    model = unet()
    structure = describe(model)
    remove(model, structure, half(model))
    apply_cut(model, Cut({}, ("mid_block.attentions.0",)), {"target": "later"})
    remove(model, describe(model), Cut({}, ("mid_block.resnets.1",)))
    loaded = from_pretrained(save_pretrained(model, tmp_path / "model"))
    assert torch.equal(output(loaded), output(model))
    assert [step.get("target") for step in manifest_of(loaded).steps] == [None, "later", None]


def test_tensors_that_nothing_accounts_for_are_not_saved(tmp_path):
    model = unet()
    model.conv_out = torch.nn.Conv2d(8, 2, 3)
    refused(lambda: save_pretrained(model, tmp_path / "model"), "conv_out.weight", "cannot be saved")
    assert not (tmp_path / "model").exists()


def test_diffusers_loads_and_saves_a_narrower_model(tmp_path, pixels):
    loaded = load(pixels)
    narrow = apply_cut(loaded.model, half(loaded.model))
    folder = secateur.save_pipeline(loaded, narrow, tmp_path / "out")
    found = DiffusionPipeline.from_pretrained(folder)
    assert torch.equal(output(found.unet), output(narrow))
    assert torch.equal(output(DDPMPipeline.from_pretrained(folder).unet), output(narrow))
    found.save_pretrained(tmp_path / "again")
    again = DiffusionPipeline.from_pretrained(tmp_path / "again", torch_dtype=torch.bfloat16)
    assert again.unet.dtype == torch.bfloat16
    assert manifest_of(again.unet) == manifest_of(narrow)
    assert len((folder / "unet" / CONFIG).read_text()) < 2_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "sana"])
def test_every_pipeline_around_a_narrower_model_loads_in_diffusers(tmp_path, name):
    pytest.importorskip("text_pipelines").PIPELINES[name](tmp_path / "pipeline")
    loaded = load(tmp_path / "pipeline")
    narrow = apply_cut(loaded.model, half(loaded.model))
    folder = secateur.save_pipeline(loaded, narrow, tmp_path / "out")
    found = getattr(DiffusionPipeline.from_pretrained(folder), loaded.component)
    assert type(found).__name__.startswith("Pruned")
    assert torch.equal(output(found), output(narrow))


def test_without_secateur_diffusers_says_what_it_needs(tmp_path, pixels, monkeypatch):
    loaded = load(pixels)
    folder = secateur.save_pipeline(loaded, apply_cut(loaded.model, half(loaded.model)), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "secateur", None)
    with pytest.raises(ModuleNotFoundError, match="secateur"):
        DiffusionPipeline.from_pretrained(folder)


def test_a_pruned_model_is_copied_as_its_dense_class_is(tmp_path):
    for cut in (half(dit()), Cut({}, ("transformer_blocks.0",))):
        model = apply_cut(dit(), cut)
        twin = copy.deepcopy(model)
        assert type(twin) is type(model)
        assert torch.equal(output(twin), output(model))
        assert manifest_of(twin) == manifest_of(model)


def test_a_transformer_that_lost_blocks_stays_of_its_class(tmp_path):
    dit_pipeline(tmp_path / "pipeline")
    loaded = load(tmp_path / "pipeline")
    folder = secateur.save_pipeline(
        loaded, apply_cut(loaded.model, Cut({}, ("transformer_blocks.0",))), tmp_path / "out"
    )
    assert read_json(folder / "model_index.json")["transformer"] == ["diffusers", "DiTTransformer2DModel"]
    plain = DiTPipeline.from_pretrained(folder)
    plain.save_pretrained(tmp_path / "plain")  # without the manifest, of which plain diffusers knows nothing
    assert manifest_of(plain.transformer) is None
    assert torch.equal(output(from_pretrained(tmp_path / "plain")), output(loaded.model))


def test_a_depth_that_was_the_default_is_followed():
    with torch.device("meta"):
        model = FluxTransformer2DModel(attention_head_dim=8, num_attention_heads=2, axes_dims_rope=(2, 2, 4))
    apply_cut(model, Cut({}, ("transformer_blocks.3", "single_transformer_blocks.5")))
    assert (model.config.num_layers, model.config.num_single_layers) == (18, 37)
    assert type(model).__name__ == "FluxTransformer2DModel"


def test_a_pipeline_in_memory_is_loaded_and_saved(tmp_path):
    pipeline = dit_pipeline(tmp_path / "pipeline")
    loaded, of_folder = secateur.io.pipeline.loaded_from_pipeline(pipeline), load(tmp_path / "pipeline")
    assert loaded.model is pipeline.transformer
    assert loaded.vae is pipeline.vae
    assert loaded.process == of_folder.process
    pruned = apply_cut(copy.deepcopy(loaded.model), half(loaded.model))
    secateur.save_pipeline(loaded, pruned, tmp_path / "out")
    assert loaded.model is pipeline.transformer
    assert torch.equal(output(secateur.load_pipeline(tmp_path / "out").transformer), output(pruned))
    decoder = secateur.io.pipeline.loaded_from_pipeline(pipeline, "vae")
    assert decoder.vae is None
    refused(lambda: secateur.io.pipeline.loaded_from_pipeline(pipeline, "unet"), "transformer, vae")


def test_a_manifest_is_json_that_people_read(pruned):
    assert json.loads((pruned / MANIFEST).read_text())["format"] == "secateur-pruning"
