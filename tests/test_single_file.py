"""Single files with the original authors' names: diffusers converts ours back, and theirs are read."""

import copy
import json

import diffusers
import pytest
import torch
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import architectures
import secateur
from models import half, output, randomize, sd3, unet
from secateur.base.errors import ModelError, SecateurError
from secateur.base.files import write_json
from secateur.io.export import Call, export
from secateur.io.manifest import apply_cut
from secateur.io.pipeline import load
from secateur.io.pruned import dense_class
from secateur.io.single_file import (
    SCHEDULERS,
    STABLE_DIFFUSION,
    _config_of,
    caution,
    load_single_file,
    scheduler_of,
    write_single_file,
)
from secateur.models.network import example_inputs
from secateur.models.registry import families
from secateur.structure import Cut

WIDE = {"num_attention_heads": 24, "attention_head_dim": 128}  # as diffusers' conversion of Flux has them built in


def released(architecture, **config):
    """The names and the numbers of rows of a wide model with few blocks, its other axes shortened."""
    with torch.device("meta"):
        state = architecture(**config).state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(tensor.shape[0], *(min(size, 2) for size in tensor.shape[1:]), generator=generator)
        for name, tensor in state.items()
    }


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        (FluxTransformer2DModel, {"num_layers": 2, "num_single_layers": 3, "guidance_embeds": True, **WIDE}),
        (FluxTransformer2DModel, {"num_layers": 1, "num_single_layers": 1, **WIDE}),
        (ChromaTransformer2DModel, {"num_layers": 2, "num_single_layers": 2, **WIDE}),
        (SD3Transformer2DModel, {"num_layers": 3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}),
        (SD3Transformer2DModel, {"num_layers": 2}),
        (WanTransformer3DModel, {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}),
        (WanTransformer3DModel, {"num_layers": 1, "num_attention_heads": 2, "image_dim": 8, "added_kv_proj_dim": 256}),
        (QwenImageTransformer2DModel, {"num_layers": 1}),
        (Flux2Transformer2DModel, {"num_layers": 2, "num_single_layers": 2}),
        (Flux2Transformer2DModel, {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": False}),
        (ZImageTransformer2DModel, {"n_layers": 2}),
    ],
)
def test_diffusers_converts_a_layout_back(architecture, config):
    state = released(architecture, **config)
    (family,) = (each for each in families() if each.architecture is architecture)
    original = family.layout.original(state)
    convert = SINGLE_FILE_LOADABLE_CLASSES[architecture.__name__]["checkpoint_mapping_fn"]
    back = convert(checkpoint=dict(original), config=config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8"])
def test_a_depth_pruned_model_is_written_and_read_as_one_file(tmp_path, dtype):
    model = apply_cut(wide_sd3(), Cut({}, ("transformer_blocks.1",)))
    about = export(model, tmp_path / "out", "single-file", dtype=dtype, size=(8, 8))
    assert about["largest_difference"] == 0
    assert about["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    path = tmp_path / "out" / "model.safetensors"
    with safe_open(path, "pt") as file:
        stored = file.get_slice("joint_blocks.0.x_block.attn.qkv.weight").get_dtype()
    assert stored == {"float32": "F32", "bfloat16": "BF16", "float8": "F8_E4M3"}[dtype]
    loaded = secateur.from_pretrained(path, torch_dtype=torch.float32)
    assert torch.equal(output(loaded), output(model.float()))
    assert load(path).process.num_train_timesteps == 1000


def wide_sd3():
    return sd3(num_layers=4, num_attention_heads=1, attention_head_dim=64, caption_projection_dim=64)


def test_a_file_without_our_metadata_is_known_by_its_tensors(tmp_path):
    model = wide_sd3()
    write_single_file(model, tmp_path / "ours.safetensors")
    tensors = load_file(tmp_path / "ours.safetensors")
    extra = {"text_encoders.clip_l.weight": torch.ones(2), "first_stage_model.step": torch.tensor(3)}
    inside = {f"model.diffusion_model.{name}": each for name, each in tensors.items()}
    save_file(inside | extra, tmp_path / "all.safetensors")
    assert torch.equal(output(load_single_file(tmp_path / "all.safetensors")), output(model))
    del tensors["x_embedder.proj.bias"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(ModelError, match=r"less\.safetensors cannot be loaded"):
        load_single_file(tmp_path / "less.safetensors")


def test_what_those_programs_cannot_run_is_refused(tmp_path):
    narrow = apply_cut(wide_sd3(), half(wide_sd3()))
    with pytest.raises(SecateurError, match="full width"):
        export(narrow, tmp_path / "out", "single-file", size=(8, 8))
    with pytest.raises(SecateurError, match="UNet2DModel is not written as a single file"):
        export(unet(), tmp_path / "out", "single-file")
    assert not (tmp_path / "out").exists()
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    strange = {"diffusers_config": json.dumps({"_class_name": "X"})}
    save_file({"a": torch.ones(1)}, tmp_path / "class.safetensors", strange)
    wrong = {
        "model.ckpt": "never opened",
        "model.safetensors": "cannot be loaded",
        "other.safetensors": "no model that is known",
        "class.safetensors": "no declared structure",
    }
    for name, said in wrong.items():
        with pytest.raises(ModelError, match=said) as caught:
            secateur.from_pretrained(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_what_those_programs_run_otherwise_is_said(tmp_path):
    """Blocks of SD3 are counted by its width (ComfyUI's detect_unet_config), and refiners of Z-Image not at all."""
    whole = sd3(num_layers=3, num_attention_heads=3, attention_head_dim=64, caption_projection_dim=192)
    assert caution(whole) == ""
    pruned = apply_cut(whole, Cut({}, ("transformer_blocks.0",)))
    about = export(pruned, tmp_path / "out", "single-file", size=(8, 8))
    assert "from its width, 3 here, and does not run the 2 of this file" in about["warning"]
    with torch.device("meta"):
        refined = {n: ZImageTransformer2DModel(n_layers=1, n_refiner_layers=n) for n in (1, 2)}
    assert caution(refined[2]) == ""
    assert "builds 2 refiners" in caution(refined[1])


def test_what_stable_diffusion_2_predicts_is_not_guessed():
    with torch.device("meta"):
        models = {width: UNet2DConditionModel(**STABLE_DIFFUSION[width]) for width in ("768", "1024")}
    configs = {width: {"_class_name": type(model).__name__, **model.config} for width, model in models.items()}
    assert scheduler_of(configs["768"])["beta_schedule"] == "scaled_linear"
    with pytest.raises(ModelError, match=r"noise \(512 pixels\) or velocity"):
        scheduler_of(configs["1024"])


def test_what_does_not_say_how_it_is_sampled_is_refused_before_its_weights_are_read(tmp_path, monkeypatch):
    write_single_file(wide_sd3(), tmp_path / "model.safetensors")
    monkeypatch.delitem(SCHEDULERS, "SD3Transformer2DModel")
    monkeypatch.setattr("secateur.io.pipeline.load_single_file", None)
    with pytest.raises(ModelError, match="does not say how it is sampled"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("width", STABLE_DIFFUSION)
def test_stable_diffusion_is_known_by_its_tensors(width):
    with torch.device("meta"):
        expected = UNet2DConditionModel(**STABLE_DIFFUSION[width]).state_dict()
    original = {ldm_name(name, width): tensor for name, tensor in expected.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in original.items()}
    config = _config_of(shapes, {})
    assert config.pop("_class_name") == "UNet2DConditionModel"
    assert config == STABLE_DIFFUSION[width]
    convert = SINGLE_FILE_LOADABLE_CLASSES["UNet2DConditionModel"]["checkpoint_mapping_fn"]
    with torch.device("meta"):
        full = dict(UNet2DConditionModel(**config).config)
    back = convert(checkpoint={f"model.diffusion_model.{name}": each for name, each in original.items()}, config=full)
    assert {name: tensor.shape for name, tensor in back.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("width", ["768", "2048"])
def test_a_file_of_stable_diffusion_is_loaded(width, tmp_path, monkeypatch):
    """Narrow, but with the levels and the names of the released one."""
    channels = [32, 32, 64, 64] if width == "768" else [32, 32, 64]
    narrow = {"block_out_channels": channels, "sample_size": 8, "attention_head_dim": 8}
    if width == "2048":
        narrow |= {"transformer_layers_per_block": [1, 2, 2], "projection_class_embeddings_input_dim": 1280 + 6 * 256}
    monkeypatch.setitem(STABLE_DIFFUSION, width, STABLE_DIFFUSION[width] | narrow)
    model = randomize(UNet2DConditionModel(**STABLE_DIFFUSION[width]))
    names = {name: f"model.diffusion_model.{ldm_name(name, width)}" for name in model.state_dict()}
    tensors = {names[name]: tensor for name, tensor in model.state_dict().items()}
    save_file(tensors | {"first_stage_model.step": torch.tensor(3)}, tmp_path / "released.safetensors")
    loaded = load(tmp_path / "released.safetensors")
    assert all(map(torch.equal, loaded.model.state_dict().values(), model.state_dict().values()))
    torch.testing.assert_close(output(loaded.model), output(model), rtol=1e-4, atol=1e-5)
    assert loaded.process.prediction_type == "epsilon"


LDM_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def ldm_name(name, width):
    """The name of a tensor of the U-Net in the code of latent diffusion (Rombach et al. 2022)."""
    layers, levels = 2, 3 if width == "2048" else 4
    plain = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    for ours, theirs in plain.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs, 1)
    parts = name.split(".")
    if parts[0] == "mid_block":
        place = {"resnets": 2 * int(parts[2]), "attentions": 1}[parts[1]]
        return _inner(f"middle_block.{place}", parts[1], parts[3:])
    level, kind, layer = int(parts[1]), parts[2], int(parts[3])
    if parts[0] == "down_blocks":
        block = 1 + level * (layers + 1) + (layers if kind == "downsamplers" else layer)
        if kind == "downsamplers":
            return f"input_blocks.{block}.0.op.{parts[-1]}"
        return _inner(f"input_blocks.{block}.{int(kind == 'attentions')}", kind, parts[4:])
    block = level * (layers + 1) + (layers if kind == "upsamplers" else layer)
    attended = level < levels - 1 if width == "2048" else level > 0
    if kind == "upsamplers":
        return f"output_blocks.{block}.{1 + attended}.conv.{parts[-1]}"
    return _inner(f"output_blocks.{block}.{int(kind == 'attentions')}", kind, parts[4:])


def _inner(place, kind, rest):
    if kind == "resnets":
        return ".".join([place, LDM_RESNET[rest[0]], *rest[1:]])
    return ".".join([place, *rest])


@torch.no_grad()
def check_single_file(model, folder, dtype, **options):
    """Write a model without some blocks, and compare its outputs with those of the model that diffusers reads."""
    before = copy.deepcopy(model)
    about = export(model, folder / dtype, "single-file", dtype=dtype, **options)
    lost = {"float32": 1e-5, "bfloat16": 0.02, "float8": 0.2}[dtype]
    assert about["precision_difference"] <= lost * about["largest_output"]
    config = {key: value for key, value in before.config.items() if not key.startswith("_secateur")}
    write_json(folder / dtype / "config.json", config)
    architecture = getattr(diffusers, dense_class(before).__name__)
    loaded = architecture.from_single_file(
        str(folder / dtype / "model.safetensors"), config=str(folder / dtype), torch_dtype=torch.float32
    )
    written = model.float().state_dict()
    assert loaded.state_dict().keys() == written.keys()
    assert [name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, written[name])] == []
    inputs = example_inputs(before.float(), 2, (8, 8))
    expected = Call(before)(**inputs)
    scale = expected.abs().max()
    assert (Call(loaded.float())(**inputs) - expected).abs().max() <= lost * scale


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "removed"),
    [
        ("QwenImageTransformer2DModel", 8, ("transformer_blocks.1",)),
        ("WanTransformer3DModel", (3, 8, 8), ("blocks.0", "blocks.2")),
        ("Flux2Transformer2DModel", 8, ("transformer_blocks.0", "single_transformer_blocks.1")),
        ("ZImageTransformer2DModel", 8, ("layers.1",)),
    ],
)
def test_models_whose_structure_is_found_are_written_as_one_file(name, size, removed, tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    dense = randomize(architectures.small(name))
    dense.register_to_config(sample_size=size)
    for dtype in ("float32", "bfloat16", "float8"):
        model = apply_cut(copy.deepcopy(dense), Cut({}, removed))
        check_single_file(model, tmp_path, dtype, size=(8, 8))


@pytest.mark.torture
@pytest.mark.parametrize("dtype", ["bfloat16", "float8"])
@pytest.mark.parametrize("architecture", [FluxTransformer2DModel, ChromaTransformer2DModel])
def test_wide_models_are_written_and_converted_back(architecture, dtype, tmp_path):
    """diffusers splits the layers of these two at the released widths only; a Chroma keeps its blocks."""
    config = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 16, **WIDE}
    torch.manual_seed(0)
    if architecture is FluxTransformer2DModel:
        model = architecture(**config | {"num_layers": 2, "num_single_layers": 2}, pooled_projection_dim=16)
        apply_cut(model, Cut({}, ("transformer_blocks.0", "single_transformer_blocks.1")))
    else:
        model = architecture(**config, approximator_hidden_dim=64, approximator_layers=1)
    model.register_to_config(sample_size=8)
    check_single_file(model.eval(), tmp_path, dtype, size=(8, 8), text_tokens=8)
