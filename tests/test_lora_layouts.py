"""LoRAs as trainers and libraries write them: names of layers, spelling of keys, scales; diffusers' own loaders."""

import copy
import json

import diffusers
import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import save_file

import architectures
from loras import KOHYA, PEFT, merged, random_lora, without
from models import dit, flux, half, output, randomize, sd3, unet_condition
from secateur.base.errors import ModelError
from secateur.io.lora import slice_lora
from secateur.io.lora_files import LORA_WEIGHTS, METADATA_KEY, PEFT_CONFIG, PEFT_WEIGHTS, read_lora
from secateur.io.manifest import apply_cut
from secateur.models.registry import describe, family_of
from secateur.structure import Cut


def test_keys_of_attention_processors_and_of_peft_without_a_component():
    model = unet_condition()
    pruned = apply_cut(copy.deepcopy(model), half(model))
    lora = random_lora(model, "", only="attn")
    expected = slice_lora(lora, pruned)
    assert all(key.startswith("unet.") for key in expected)
    old = {}
    for key, tensor in lora.items():
        attention, _, projection = key.replace(".to_out.0", ".to_out").rpartition(".to_")
        parts = ".lora.".join(projection.split(".lora_")).replace(".A.", ".down.").replace(".B.", ".up.")
        old[f"{attention}.processor.to_{parts}".replace(".lora.", "_lora.")] = tensor
    assert "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight" in old
    for found in (slice_lora(old, pruned), slice_lora({f"base_model.model.{k}": v for k, v in lora.items()}, pruned)):
        assert [tensor.tolist() for tensor in found.values()] == [tensor.tolist() for tensor in expected.values()]


def test_a_bias_of_peft_is_sliced_and_text_encoders_stay():
    model = dit()
    pruned = apply_cut(copy.deepcopy(model), half(model))
    lora = random_lora(model, "transformer.", only="ff.net.0")
    bias = torch.arange(128.0)
    text = {"text_encoder.layers.0.q_proj.lora_A.weight": torch.ones(2, 5), "lora_te_layers_0.alpha": torch.ones(())}
    sliced = slice_lora(lora | text | {"transformer.transformer_blocks.0.ff.net.0.proj.lora_B.bias": bias}, pruned)
    assert torch.equal(sliced["transformer.transformer_blocks.0.ff.net.0.proj.lora_B.bias"], bias[:64])
    assert {key for key in sliced if key.startswith(("text", "lora_te"))} == set(text)


def renamed(lora, old, new):
    return {key.replace(old, new): tensor for key, tensor in lora.items()}


@pytest.mark.parametrize(("rslora", "scale"), [(False, 8 / 4), (True, 8 / 2)])
@pytest.mark.parametrize("kind", ["diffusers", "peft"])
def test_scales_of_a_peft_config_are_multiplied_in(tmp_path, kind, rslora, scale):
    prefix = "transformer" if kind == "diffusers" else "base_model"
    keys = [f"{prefix}.model.blocks.{i}.to_q" for i in range(2)]
    lora = {f"{key}{ending}": torch.ones(4, 4) for key in keys for ending in PEFT}
    config = {"r": 4, "lora_alpha": 8, "use_rslora": rslora, "alpha_pattern": {"blocks.1.to_q": 2}}
    if kind == "diffusers":
        packed = json.dumps({f"transformer.{key}": value for key, value in config.items()})
        save_file(lora, tmp_path / LORA_WEIGHTS, {METADATA_KEY: packed})
    else:
        save_file(lora, tmp_path / PEFT_WEIGHTS)
        (tmp_path / PEFT_CONFIG).write_text(json.dumps(config))
    found = read_lora(tmp_path)
    assert torch.equal(found[f"{keys[0]}.lora_B.weight"], torch.full((4, 4), scale))
    assert torch.equal(found[f"{keys[1]}.lora_B.weight"], torch.full((4, 4), scale / 4))
    assert torch.equal(found[f"{keys[0]}.lora_A.weight"], torch.ones(4, 4))


def test_an_alpha_beside_peft_matrices_is_multiplied_in():
    model = dit()
    pruned, lora = apply_cut(copy.deepcopy(model), half(model)), random_lora(model, "transformer.", alpha=7.0)
    expected = apply_cut(merged(model, lora, "transformer."), half(model))
    spelled = renamed(renamed(lora, "transformer.t", "diffusion_model.t"), ".weight", ".default.weight")
    sliced = slice_lora(spelled, pruned)
    assert not [key for key in sliced if key.endswith(".alpha")]
    torch.testing.assert_close(output(merged(pruned, sliced, "transformer.")), output(expected), atol=1e-5, rtol=1e-5)


def original_flux_keys(model):
    """A LoRA of Flux as trainers write it: fused layers under the authors' names."""
    generator = torch.Generator().manual_seed(1)
    width = model.config.num_attention_heads * model.config.attention_head_dim
    sizes = {}
    for i in range(model.config.num_layers):
        for stream in ("img", "txt"):
            sizes[f"double_blocks.{i}.{stream}_attn.qkv"] = (3 * width, width)
            sizes[f"double_blocks.{i}.{stream}_attn.proj"] = (width, width)
            sizes[f"double_blocks.{i}.{stream}_mlp.0"] = (4 * width, width)
    for i in range(model.config.num_single_layers):
        sizes[f"single_blocks.{i}.linear2"] = (width, 5 * width)
    lora = {}
    for name, (out, into) in sizes.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        lora[f"{key}.lora_down.weight"] = torch.randn(2, into, generator=generator) * 0.1
        lora[f"{key}.lora_up.weight"] = torch.randn(out, 2, generator=generator) * 0.1
        lora[f"{key}.alpha"] = torch.tensor(4.0)
    return lora


def test_a_lora_by_the_names_of_the_authors_of_flux():
    model = flux()
    lora = original_flux_keys(model)
    known = FluxPipeline.lora_state_dict(dict(lora))
    pruned = apply_cut(copy.deepcopy(model), half(model))
    apply_cut(pruned, Cut({}, ("transformer_blocks.0", "single_transformer_blocks.1")))
    expected = apply_cut(merged(model, known, "transformer."), half(model))
    apply_cut(expected, Cut({}, ("transformer_blocks.0", "single_transformer_blocks.1")))
    sliced = slice_lora(lora, pruned)
    torch.testing.assert_close(output(merged(pruned, sliced, "transformer.")), output(expected), atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match="belongs to a DoRA"):  # diffusers would leave its norms out
        slice_lora(lora | {"lora_unet_single_blocks_0_linear2.dora_scale": torch.ones(1)}, pruned)
    with pytest.raises(ModelError, match=r"transformer_blocks\.9"):
        slice_lora({key.replace("double_blocks_0", "double_blocks_9"): value for key, value in lora.items()}, pruned)


@pytest.mark.parametrize(
    ("make", "prefix", "block"),
    [(unet_condition, "unet", "mid_block.attentions.0"), (sd3, "transformer", "transformer_blocks.0")],
)
def test_diffusers_and_peft_load_what_was_sliced(make, prefix, block):
    pytest.importorskip("peft", reason="peft is not installed")
    model = make()
    pruned = apply_cut(copy.deepcopy(model), half(model))
    apply_cut(pruned, Cut({}, (block,)))
    sliced = slice_lora(random_lora(model, f"{prefix}.", only="attn"), pruned)
    expected = output(merged(pruned, sliced, f"{prefix}."))
    pruned.load_lora_adapter(sliced, prefix=prefix)
    torch.testing.assert_close(output(pruned), expected, atol=1e-5, rtol=1e-5)


WAN_NAMES = {"attn1": "self_attn", "attn2": "cross_attn", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "o"}
WAN_NAMES |= {"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}


def wan_spelling(name):
    for ours, theirs in WAN_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def with_underscores(name):
    return name.replace(".", "_")


def stacked(found):
    """The output of a network of lists as one tensor."""
    return torch.stack(found) if isinstance(found, list) else found


def by_diffusers(model, lora):
    """The LoRA as the loader of its pipeline reads it; some loaders scale in place."""
    pipeline = getattr(diffusers, family_of(model).lora_pipeline)
    found = pipeline.lora_state_dict({key: tensor.clone() for key, tensor in lora.items()})
    found = found[0] if isinstance(found, tuple) else found
    return {f"transformer.{key.removeprefix('transformer.')}": tensor for key, tensor in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        (
            "WanTransformer3DModel",
            [
                {"head": "diffusion_model.", "spell": wan_spelling},
                {"head": "diffusion_model.", "spell": wan_spelling, "endings": KOHYA, "alpha": 2.0},
                {"head": "lora_unet_", "spell": lambda x: with_underscores(wan_spelling(x)), "endings": KOHYA}
                | {"alpha": 2.0},
            ],
        ),
        (
            "QwenImageTransformer2DModel",
            [
                {"head": ""},
                {"head": "diffusion_model."},
                {"head": "", "endings": KOHYA, "alpha": 2.0},
                {"head": "lora_unet_", "spell": with_underscores, "endings": KOHYA, "alpha": 2.0},
            ],
        ),
        ("Flux2Transformer2DModel", [{"head": "transformer."}]),
        (
            "ZImageTransformer2DModel",
            [
                {"head": "diffusion_model.", "endings": KOHYA, "alpha": 2.0},
                {"head": "lora_unet_", "spell": with_underscores, "endings": KOHYA, "alpha": 2.0},
            ],
        ),
    ],
)
def test_styles_of_loras_of_models_whose_structure_is_found(name, layouts, tmp_path, monkeypatch):
    """After cuts of widths and depth, diffusers' own loader reads what is left, whatever the keys were."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path))
    fitting = {"in_channels": 8, "out_channels": 2} if name.startswith("Qwen") else {}
    model = randomize(architectures.small(name, **fitting))
    model.register_to_config(sample_size=(3, 8, 8) if name.startswith("Wan") else 8)
    blocks = without(next(iter(describe(model).blocks)))
    pruned = copy.deepcopy(model)
    for cut in (half, blocks):
        apply_cut(pruned, cut(pruned))
    for layout in layouts:
        lora = random_lora(model, only="blocks." if name.startswith("Wan") else "att", **layout)
        before = {key: tensor.clone() for key, tensor in lora.items()}
        wanted = merged(model, by_diffusers(model, lora), "transformer.")
        for cut in (half, blocks):
            apply_cut(wanted, cut(wanted))
        found = merged(pruned, by_diffusers(pruned, slice_lora(lora, pruned)), "transformer.")
        expected = stacked(output(wanted))
        torch.testing.assert_close(stacked(output(found)), expected, atol=1e-5, rtol=1e-5)
        assert (stacked(output(pruned)) - expected).abs().max() > 1e-3
        assert all(torch.equal(lora[key], tensor) for key, tensor in before.items())
