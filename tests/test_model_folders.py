"""Model folders of unusual layout or content: loaded if valid, else refused in one line."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file, save_file

import secateur
from models import dit, output, unet, unet_condition
from saved_folders import change, dense_model, refused
from secateur.base.errors import ModelError
from secateur.base.files import write_json
from secateur.io.checkpoint import CONFIG, from_pretrained, save_pretrained
from secateur.io.locate import ASSETS
from secateur.io.pipeline import load
from secateur.io.weights import WEIGHTS, WEIGHTS_INDEX
from secateur.models.registry import describe

model = pytest.fixture(dense_model)


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
