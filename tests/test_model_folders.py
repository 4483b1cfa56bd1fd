"""Model folders of unknown origin or unusual layout: loaded if valid, else refused in one line.

Nothing in a folder is run or unpickled, points outside, or takes more memory than its size.
"""

import builtins
import copy
import json
import os
import pickle
import resource
import runpy
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, DiTPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file

import secateur
from models import dit, half, output, unet, unet_condition
from pipelines import dit_pipeline
from secateur.base.errors import ModelError
from secateur.base.files import read_json, write_json
from secateur.io.checkpoint import CONFIG, from_pretrained, save_pretrained
from secateur.io.files import check_file
from secateur.io.locate import ASSETS
from secateur.io.manifest import MANIFEST, POINTER_KEY, Manifest, apply_cut, manifest_of
from secateur.io.pipeline import load
from secateur.io.weights import WEIGHTS, WEIGHTS_INDEX
from secateur.models.registry import describe
from secateur.structure import Cut, remove

NAMES = ("stranger", "unet", "scheduler", "modeling", "pipeline", "UNet2DModel", "custom")


@pytest.fixture
def pixels(tmp_path):
    """A pipeline folder of pixels."""
    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture
def model(tmp_path):
    """A folder of a dense model."""
    return save_pretrained(unet(), tmp_path / "model", dict(DDPMScheduler().config, _class_name="DDPMScheduler"))


@pytest.fixture
def pruned(tmp_path):
    """A folder of a narrower model."""
    return save_pretrained(apply_cut(unet(), half(unet())), tmp_path / "pruned")


def change(path, **entries):
    value = read_json(path) | entries
    write_json(path, {name: entry for name, entry in value.items() if entry is not None})


def change_manifest(folder, edit):
    """Let `edit` change the manifest, and let the config name the changed one."""
    manifest = read_json(folder / MANIFEST)
    edit(manifest)
    write_json(folder / MANIFEST, manifest)
    digest = Manifest(manifest["base"], tuple(manifest["steps"])).digest
    change(folder / CONFIG, **{POINTER_KEY: {"file": MANIFEST, "sha256": digest}})


def refused(call, *words):
    with pytest.raises(ModelError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


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


# What people have


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_shards_keep_the_dtype_that_they_share(tmp_path, dtype):
    unet().to(dtype).save_pretrained(tmp_path / "model", max_shard_size="2KB")
    assert (tmp_path / "model" / WEIGHTS_INDEX).is_file()
    loaded = from_pretrained(tmp_path / "model")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
    assert torch.equal(output(loaded.float()), output(unet().to(dtype).float()))
    assert from_pretrained(tmp_path / "model", torch_dtype=torch.float32, device="cpu").dtype == torch.float32


@pytest.mark.parametrize("sharded", [False, True])
def test_a_sole_variant_is_found_and_one_of_two_is_asked_for(tmp_path, sharded):
    options = {"max_shard_size": "2KB"} if sharded else {}
    folder = tmp_path / "model"
    unet().half().save_pretrained(folder, variant="fp16", **options)
    assert from_pretrained(folder).dtype == torch.float16
    refused(lambda: from_pretrained(folder, variant="ema"), "ema", "fp16")
    unet().to(torch.bfloat16).save_pretrained(folder, variant="bf16", **options)
    refused(lambda: from_pretrained(folder), "bf16, fp16")
    assert from_pretrained(folder, variant="bf16").dtype == torch.bfloat16
    unet().save_pretrained(folder)
    assert from_pretrained(folder).dtype == torch.float32


def test_a_pipeline_of_one_variant_loads_whole(tmp_path):
    DDPMPipeline(unet().half(), DDPMScheduler()).save_pretrained(tmp_path / "pipeline", variant="fp16")
    assert secateur.load_pipeline(tmp_path / "pipeline").unet.dtype == torch.float16
    assert from_pretrained(tmp_path, subfolder="pipeline", component="unet").dtype == torch.float16
    assert from_pretrained(tmp_path / "pipeline", subfolder="unet", variant="fp16").dtype == torch.float16
    refused(lambda: from_pretrained(tmp_path, subfolder="../pipeline"), "inside")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"num_layers": 2}, ["no place for", "transformer_blocks.2"]),
        ({"num_layers": 6}, ["lack", "transformer_blocks.4"]),
        ({"in_channels": 2}, ["pos_embed.proj.weight", "(32, 2, 2, 2)"]),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, ["quantized", "bitsandbytes"]),
        ({"quantization_config": "strange"}, ["quantized"]),
        ({"norm_num_groups": "many", "num_attention_heads": 0}, []),
        ({"num_attention_heads": "two"}, []),
        ({"activation_fn": "nonsense"}, []),
        ({"_class_name": "Stranger"}, ["Stranger"]),
        ({"_class_name": "secateur.PrunedPrunedDiTTransformer2DModel"}, ["PrunedDiTTransformer2DModel"]),
    ],
)
def test_a_config_that_is_not_of_the_weights_is_one_line(tmp_path, entries, words):
    folder = save_pretrained(dit(), tmp_path / "model")
    change(folder / CONFIG, **entries)
    refused(lambda: from_pretrained(folder), str(folder), *words)


@pytest.mark.parametrize("text", ["[]", "3", "{", "\udcff", '{"a": ' * 10_000])
@pytest.mark.parametrize("name", [CONFIG, "scheduler_config.json"])
def test_json_of_another_shape_is_one_line(model, name, text):
    (model / name).write_bytes(text.encode(errors="surrogateescape"))
    refused(lambda: load(model), name)


@pytest.mark.parametrize("index", [[], {"weight_map": []}, {"weight_map": {"a": 1}}, {}])
def test_an_index_of_another_shape_is_one_line(model, index):
    (model / WEIGHTS).rename(model / "diffusion_pytorch_model-00001-of-00001.safetensors")
    write_json(model / WEIGHTS_INDEX, index)
    refused(lambda: from_pretrained(model), WEIGHTS_INDEX)


def test_integer_weights_are_of_a_quantized_model(model):
    weights = load_file(model / WEIGHTS)
    weights["conv_in.weight"] = weights["conv_in.weight"].to(torch.int8)
    save_file(weights, model / WEIGHTS)
    refused(lambda: from_pretrained(model), "conv_in.weight", "I8")


def test_a_transformer_of_the_old_common_class_is_known_by_its_norm(tmp_path):
    folder = save_pretrained(dit(), tmp_path / "model")
    change(folder / CONFIG, _class_name="Transformer2DModel")  # as facebook/DiT-XL-2-256 has it
    assert torch.equal(output(from_pretrained(folder)), output(dit()))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("cross_attention_dim", (8, 12)),
        ("addition_embed_type", "text_image"),
        ("time_cond_proj_dim", 16),
    ],
)
def test_a_unet_with_conditions_beside_text_is_refused(entry, value):
    everywhere = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    model = unet_condition(**everywhere, **{entry: value})
    with pytest.raises(ValueError, match=entry):
        describe(model)


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


def test_the_current_folder_is_not_where_modules_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), "", *sys.path])
    monkeypatch.setattr(sys, "argv", ["secateur", "--help"])
    runpy.run_module("secateur", run_name="__main__")
    assert str(tmp_path) not in sys.path
    assert "" not in sys.path


@pytest.mark.parametrize(
    "use",
    [
        lambda folder: secateur.inspect(folder),
        lambda folder: secateur.plan(folder, target="macs=50%", data="digits"),
        lambda folder: secateur.rank(folder, data="digits"),
        lambda folder: secateur.sample(folder, num_images=1, num_inference_steps=1),
        lambda folder: secateur.finetune(folder, data="digits", steps=2),
        lambda folder: secateur.evaluate("digits-unet", reference=folder, data="digits", metrics=("output-error",)),
    ],
)
def test_a_config_that_fails_in_the_first_call_names_its_folder(tmp_path, use):
    folder = embedded(tmp_path, freq_shift=[0, 1])
    with pytest.raises(ModelError, match=f"^{folder} fails when it is called: TypeError: .*list"):
        use(folder)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"norm_num_groups": 4.0}, "cannot be described: TypeError"),
        ({"in_channels": True}, "its in_channels is True"),
        ({"sample_size": [8]}, "its sample_size is"),
    ],
)
def test_values_of_another_type_are_refused_before_a_call(tmp_path, values, reason):
    folder = embedded(tmp_path, **values)
    with pytest.raises(ModelError, match=f"^{folder}.*{reason}"):
        secateur.inspect(str(folder))


def test_a_sample_size_that_does_not_fit_the_patches_is_refused(tmp_path):
    folder = embedded(tmp_path, "digits-sit", sample_size=9)
    with pytest.raises(ModelError, match="takes samples of 9x9 and predicts 8x8"):
        secateur.sample(folder, num_images=1, num_inference_steps=1)


def embedded(tmp_path, name="digits-unet", **values):
    """A copy of an embedded model, with other values in its config."""
    folder = tmp_path / "changed"
    shutil.copytree(ASSETS / name, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder
