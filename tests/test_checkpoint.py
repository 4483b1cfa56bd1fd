"""Invariant 2: saved equals loaded, safetensors and JSON only, pruned again composes, in any precision."""

import copy
import json
from functools import partial

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import secateur
from architectures import NAMES, small
from models import STRATEGIES, autoencoder, cuts, dit, flux, half, output, pixart, sana, sd3, unet, unet_condition
from saved_folders import DDPM
from secateur.io.checkpoint import from_pretrained, save_pretrained
from secateur.io.manifest import MANIFEST, apply_cut, manifest_of, note_step, removed_since
from secateur.io.pipeline import load
from secateur.models.precision import cast_saved
from secateur.models.predict import predict
from secateur.models.registry import describe
from secateur.structure import Cut, remove


@pytest.mark.slow
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", STRATEGIES)
def test_saved_equals_loaded_bit_for_bit_after_two_cuts(name, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model = data.draw(STRATEGIES[name])
    for generation in range(2):
        apply_cut(model, data.draw(cuts(describe(model))))
        save_pretrained(model, folder / "model", DDPM)
        loaded = load(folder / "model").model
        assert torch.equal(output(loaded), output(model))
        assert attributes_of(loaded) == attributes_of(model)
        assert len(manifest_of(loaded).steps) == generation + 1
        model = loaded
    assert {path.suffix for path in (folder / "model").iterdir()} == {".json", ".safetensors"}


def test_removed_blocks_are_named_as_in_any_model_before(tmp_path):
    dense = dit(num_layers=6)
    once = apply_cut(copy.deepcopy(dense), Cut(removed_blocks=("transformer_blocks.1", "transformer_blocks.4")))
    twice = apply_cut(
        copy.deepcopy(once), Cut(removed_blocks=("transformer_blocks.1",))
    )  # of the dense model the third
    note_step(twice, "recovery", {})
    assert removed_since(twice, dense) == tuple(f"transformer_blocks.{i}" for i in (1, 2, 4))
    assert removed_since(twice, once) == ("transformer_blocks.1",)
    assert removed_since(once, twice) == removed_since(dense, once) == removed_since(twice, twice) == ()
    other = apply_cut(copy.deepcopy(dense), Cut(removed_blocks=("transformer_blocks.0",)))
    assert removed_since(twice, other) == ()
    net = unet()
    names = tuple(describe(net).blocks)[:2]  # replaced where they stand, not taken out of a list
    assert removed_since(apply_cut(copy.deepcopy(net), Cut(removed_blocks=names)), net) == names


def attributes_of(model):
    """Every number that a module keeps beside its tensors: heads, channels, groups, scales."""
    return {
        f"{name}.{key}": list(value) if isinstance(value, list | tuple) else value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float | list | tuple) and key != "training"
    }


def test_a_dense_model_saves_and_loads(tmp_path):
    model = unet()
    save_pretrained(model, tmp_path / "dense", DDPM)
    assert manifest_of(from_pretrained(tmp_path / "dense")) is None
    assert torch.equal(output(from_pretrained(tmp_path / "dense")), output(model))
    assert from_pretrained(tmp_path / "dense", torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_cut_that_is_refused_forgets_no_earlier_one(tmp_path):
    model = unet()
    remove(model, describe(model), half(model))
    with pytest.raises(ValueError, match="no dim or block named other"):
        apply_cut(model, Cut({"other": (0,)}))
    save_pretrained(model, tmp_path / "model")
    assert torch.equal(output(from_pretrained(tmp_path / "model")), output(model))


@pytest.mark.parametrize(
    ("make", "removed"),
    [
        (dit, ("transformer_blocks.0", "transformer_blocks.2")),
        (dit, ("transformer_blocks.1", "transformer_blocks.2")),
        (pixart, ("transformer_blocks.0",)),
        (partial(sd3, num_layers=4, dual_attention_layers=(0, 2)), ("transformer_blocks.1",)),
        (flux, ("transformer_blocks.1", "single_transformer_blocks.0")),
        (flux, ("transformer_blocks.0", "transformer_blocks.1")),
        (sana, ("transformer_blocks.2",)),
    ],
)
def test_a_depth_pruned_transformer_loads_in_plain_diffusers(tmp_path, make, removed):
    model = make()
    apply_cut(model, Cut({}, removed))
    save_pretrained(model, tmp_path / "model")
    plain = type(model).from_pretrained(tmp_path / "model").eval()
    assert len(plain.transformer_blocks) == len(model.transformer_blocks)
    assert torch.equal(output(plain), output(model))


def test_a_pruned_unet_drops_into_a_pipeline(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "dense")
    loaded = load(tmp_path / "dense")
    assert isinstance(loaded.model, UNet2DModel)
    pruned = apply_cut(copy.deepcopy(loaded.model), half(loaded.model))
    secateur.save_pipeline(loaded, pruned, tmp_path / "pruned")
    pipeline = secateur.load_pipeline(tmp_path / "pruned")
    assert torch.equal(output(pipeline.unet), output(pruned))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 8, 8, 1)
    assert torch.equal(output(load(tmp_path / "pruned").model), output(pruned))


def test_a_replaced_process_is_that_of_the_saved_pipeline(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "dense")
    replaced = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
    loaded = load(tmp_path / "dense", process=replaced)
    secateur.save_pipeline(loaded, loaded.model, tmp_path / "copy")
    pipeline = secateur.load_pipeline(tmp_path / "copy")
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert load(tmp_path / "copy").scheduler_config == replaced
    kept = secateur.save_pipeline(load(tmp_path / "dense"), loaded.model, tmp_path / "kept")
    assert isinstance(secateur.load_pipeline(kept).scheduler, DDPMScheduler)


def test_the_flow_convention_travels_with_the_scheduler(tmp_path):
    config = dict(FlowMatchEulerDiscreteScheduler().config) | {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_secateur_flow_convention": "sit",
    }
    save_pretrained(dit(), tmp_path / "sit", config)
    assert load(tmp_path / "sit").process.convention == "sit"


def test_a_manifest_names_the_model_as_it_was_asked_for():
    model = from_pretrained("digits-unet")
    pruned = secateur.prune(model, target="macs=60%", process="ddpm", criterion="magnitude")
    assert manifest_of(pruned).base["id"] == "digits-unet"


def test_a_saved_model_has_a_card_that_says_what_was_done_and_a_dense_one_has_none(tmp_path):
    assert not (secateur.save_pretrained(unet(), tmp_path / "dense") / "README.md").exists()
    cut = {"target": "macs=56%", "criterion": "taylor"}
    model = apply_cut(unet(), half(unet()), cut, "someone/base")
    images = {name: torch.zeros(3, 1, 8, 8) for name in ("dense", "pruned")}
    folder = secateur.save_pretrained(model, tmp_path / "model", DDPM, images=images, licence="mit")
    card = (folder / "README.md").read_text()
    for said in ('license: "mit"', 'base_model: "someone/base"', "ranked by taylor", "](samples.png)"):
        assert said in card
    assert "secateur prune someone/base --target macs=56% --criterion taylor --data DATA --out step1" in card
    assert (folder / "samples.png").is_file()
    assert torch.equal(output(secateur.from_pretrained(folder)), output(model))


def test_a_model_loads_without_its_scheduler(tmp_path):
    model = apply_cut(unet(), half(unet()))
    save_pretrained(model, tmp_path / "model")
    assert torch.equal(output(from_pretrained(tmp_path / "model")), output(model))


def test_saving_into_a_folder_leaves_other_files_and_no_stale_manifest(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text("mine")
    save_pretrained(apply_cut(unet(), half(unet())), tmp_path / "model", DDPM)
    save_pretrained(unet(), tmp_path / "model", DDPM)
    assert (tmp_path / "model" / "README.md").read_text() == "mine"
    assert not (tmp_path / "model" / MANIFEST).exists()
    assert torch.equal(output(from_pretrained(tmp_path / "model")), output(unet()))


def test_what_a_save_does_not_write_is_not_believed(tmp_path):
    folder = tmp_path / "model"
    apply_cut(unet(), half(unet())).save_pretrained(folder, max_shard_size="20KB")  # shards with an index
    assert list(folder.glob("*.index.json"))
    save_pretrained(unet(), folder, DDPM)
    assert torch.equal(output(from_pretrained(folder)), output(unet()))
    dense = DDPMPipeline(unet(), DDPMScheduler())
    loaded = secateur.load(dense_at(tmp_path / "dense", dense))
    other = save_pretrained(apply_cut(unet(), half(unet())), tmp_path / "out" / "other" / "unet")
    before = output(from_pretrained(other))
    secateur.save_pipeline(loaded, apply_cut(unet(), half(unet())), tmp_path / "out")
    secateur.save_pipeline(loaded, unet(), tmp_path / "out")
    assert torch.equal(output(from_pretrained(other)), before)
    assert torch.equal(output(secateur.load_pipeline(tmp_path / "out").unet), output(unet()))


def dense_at(folder, pipeline):
    pipeline.save_pretrained(folder)
    return folder


def test_a_pipeline_of_diffusers_compares_with_a_model_of_ours(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "mine")  # with defaults and versions filled in
    bare = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}
    save_pretrained(unet(), tmp_path / "theirs", bare)
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    result = secateur.evaluate(tmp_path / "mine", reference=tmp_path / "theirs", data=images, metrics=("loss",))
    assert result.macs.ratio == 1
    scheduler = json.loads((tmp_path / "mine" / "scheduler" / "scheduler_config.json").read_text())
    assert len(scheduler) > len(bare)


def test_a_pipeline_saved_by_diffusers_keeps_the_manifest(tmp_path):
    pruned = apply_cut(unet(), half(unet()))
    DDPMPipeline(pruned, DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    found = secateur.load_pipeline(tmp_path / "pipeline").unet
    assert torch.equal(output(found), output(pruned))
    assert manifest_of(found) == manifest_of(pruned)


@pytest.mark.parametrize("make", [unet, dit])
@pytest.mark.parametrize("pruned", [False, True])
def test_half_precision_comes_back_bit_for_bit(tmp_path, make, pruned):
    model = make()
    if pruned:
        apply_cut(model, half(model))
    cast_saved(model, torch.bfloat16)
    save_pretrained(model, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model")
    assert loaded.dtype == torch.bfloat16
    noise = torch.randn(2, 1, 8, 8)
    labels = {} if make is unet else {"class_labels": torch.tensor([1, 2])}
    first, second = (predict(each, noise, torch.tensor([3, 4]), labels) for each in (model, loaded))
    assert first.dtype == torch.float32
    assert torch.equal(first, second)


@pytest.mark.parametrize("make", [unet_condition, pixart, sd3, flux, sana, autoencoder])
def test_half_precision_of_any_architecture_comes_back_bit_for_bit(tmp_path, make):
    model = make()
    cast_saved(apply_cut(model, half(model)), torch.bfloat16)
    save_pretrained(model, tmp_path / "model")
    loaded = from_pretrained(tmp_path / "model")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    assert torch.equal(output(loaded), output(model))


@pytest.mark.torture
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # of an audio autoencoder of diffusers
@pytest.mark.parametrize("name", NAMES)
def test_every_transformer_of_diffusers_saves_and_loads(tmp_path, name):
    try:
        model = small(name)
    except (ValueError, TypeError) as error:
        pytest.skip(f"not built small: {error}")
    loaded = from_pretrained(save_pretrained(model, tmp_path / "model"))
    saved, found = model.state_dict(), loaded.state_dict()
    assert saved.keys() == found.keys()
    assert all(torch.equal(saved[key], found[key]) for key in saved)
