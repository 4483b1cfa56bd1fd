"""A LoRA merged before the cut gives the function that the sliced LoRA merged after it gives."""

import copy
import json
from functools import partial

import diffusers
import pytest
import torch
from diffusers import FluxPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import architectures
import secateur
from models import STRATEGIES, cuts, dit, flux, half, output, pixart, randomize, sd3, sdxl, unet, unet_condition
from secateur.base.errors import ModelError
from secateur.cli import main
from secateur.io.checkpoint import save_pretrained
from secateur.io.lora import slice_lora
from secateur.io.lora_files import LORA_WEIGHTS, METADATA_KEY, PEFT_CONFIG, PEFT_WEIGHTS, read_lora
from secateur.io.manifest import apply_cut
from secateur.models.registry import describe, family_of
from secateur.structure import Cut

PEFT = (".lora_A.weight", ".lora_B.weight")
OLD = (".lora.down.weight", ".lora.up.weight")
KOHYA = (".lora_down.weight", ".lora_up.weight")


def adaptable(model):
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def random_lora(model, head="unet.", endings=PEFT, rank=3, alpha=None, only="", spell=lambda name: name):
    """A LoRA of every linear layer and convolution, large enough to change the output."""
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for name, module in adaptable(model).items():
        out, *into = module.weight.shape
        key = f"{head}{spell(name)}"
        if only in name:
            lora[key + endings[0]] = torch.randn(rank, *into, generator=generator) * 0.1
            lora[key + endings[1]] = torch.randn(out, rank, *[1] * (len(into) - 1), generator=generator) * 0.1
            if alpha is not None:
                lora[f"{key}.alpha"] = torch.tensor(alpha)
    return lora


@torch.no_grad()
def merged(model, lora, head="unet.", endings=PEFT, spell=lambda name: name):
    """`model` with alpha / rank * up @ down added to its weights, and every tensor of `lora` used."""
    model, left = copy.deepcopy(model), set(lora)
    for name, module in adaptable(model).items():
        key = f"{head}{spell(name)}"
        if key + endings[0] in lora:
            down, up = lora[key + endings[0]], lora[key + endings[1]]
            scale = float(lora.get(f"{key}.alpha", len(down))) / len(down)
            module.weight += (scale * up.flatten(1) @ down.flatten(1)).reshape(module.weight.shape)
            left -= {key + endings[0], key + endings[1], f"{key}.alpha"}
    assert not left
    return model


def assert_same_function(model, cutting, **layout):
    """Cut after merging, and merge after slicing; and the LoRA is large enough to be seen."""
    lora = random_lora(model, **layout)
    layout = {key: value for key, value in layout.items() if key in ("head", "endings", "spell")}
    wanted, pruned = merged(model, lora, **layout), copy.deepcopy(model)
    for cut in cutting:
        wanted, pruned = apply_cut(wanted, cut(wanted)), apply_cut(pruned, cut(pruned))
    sliced = slice_lora(lora, pruned)
    expected = output(wanted)
    written = layout if layout.get("endings") is KOHYA else layout | {"endings": PEFT}
    torch.testing.assert_close(output(merged(pruned, sliced, **written)), expected, atol=1e-5, rtol=1e-5)
    assert (output(pruned) - expected).abs().max() > 1e-3
    return lora, sliced


def without(*names):
    return lambda model: Cut({}, names)


@pytest.mark.parametrize(
    ("make", "head", "blocks"),
    [
        (unet, "unet.", ("down_blocks.0.resnets.0", "mid_block.attentions.0")),
        (partial(unet, attention_head_dim=None), "unet.", ("mid_block.resnets.1",)),  # one head: rescaled queries
        (unet_condition, "unet.", ("up_blocks.1.attentions.0",)),
        (sdxl, "unet.", ("mid_block.attentions.0.transformer_blocks.0",)),
        (dit, "transformer.", ("transformer_blocks.0", "transformer_blocks.2")),
        (partial(dit, num_attention_heads=1), "transformer.", ("transformer_blocks.1",)),
        (pixart, "transformer.", ("transformer_blocks.1",)),
        (partial(sd3, num_layers=4), "transformer.", ("transformer_blocks.1",)),
    ],
)
def test_slicing_commutes_with_merging_over_two_cuts_of_widths_and_one_of_blocks(make, head, blocks):
    lora, sliced = assert_same_function(make(), [half, without(*blocks), half], head=head)
    assert sum(map(torch.numel, sliced.values())) < sum(map(torch.numel, lora.values()))
    assert len(sliced) < len(lora)


@pytest.mark.slow
@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", STRATEGIES)
def test_slicing_commutes_with_merging_in_random_configurations(name, data):
    model = data.draw(STRATEGIES[name])
    head = "unet." if "UNet" in type(model).__name__ else "transformer."
    lora = random_lora(model, head)
    wanted, pruned = merged(model, lora, head), copy.deepcopy(model)
    for _ in range(2):
        cut = data.draw(cuts(describe(pruned)))
        apply_cut(wanted, cut), apply_cut(pruned, cut)
    found = output(merged(pruned, slice_lora(lora, pruned), head))
    torch.testing.assert_close(found, output(wanted), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [unet_condition, dit])
@pytest.mark.parametrize("alpha", [None, 7.0])
@pytest.mark.parametrize(
    ("head", "endings", "spell"),
    [
        ("component", OLD, lambda name: name),
        ("component", (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), lambda name: name),
        ("lora_unet_", KOHYA, lambda name: name.replace(".", "_")),
    ],
)
def test_every_layout_and_alpha(make, alpha, head, endings, spell):
    head = head if head != "component" else "unet." if make is unet_condition else "transformer."
    blocks = without("mid_block.attentions.0" if make is unet_condition else "transformer_blocks.1")
    assert_same_function(make(), [half, blocks], head=head, endings=endings, spell=spell, alpha=alpha)


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


def of_queries(model, change=lambda key, tensor: {key: tensor}):
    lora = random_lora(model, "transformer.", only="to_q")
    return {new: value for key, tensor in lora.items() for new, value in change(key, tensor).items()}


@pytest.mark.parametrize(
    ("make_lora", "said"),
    [
        (lambda model: of_queries(dit(attention_head_dim=4)), r"lora_A.weight has shape .* LoRA of another model"),
        (lambda model: {"transformer.x.lora_A.weight": torch.ones(1, 1)}, "a layer x, which the dense base"),
        (lambda model: {"transformer.transformer_blocks.0.attn1.to_q.hada_w1_a": torch.ones(1)}, "no part of"),
        (lambda model: {"transformer.x.lora_magnitude_vector": torch.ones(1)}, "belongs to a DoRA"),
        (lambda model: of_queries(model, lambda k, v: {k: v} if "lora_A" in k else {}), "two matrices of one rank"),
        (lambda model: of_queries(model, lambda k, v: {k: v[:2] if "lora_A" in k else v}), "two matrices of one rank"),
    ],
)
def test_what_is_no_lora_of_the_base_is_refused_in_one_line(make_lora, said):
    model = dit()
    pruned = apply_cut(copy.deepcopy(model), half(model))
    with pytest.raises(ModelError, match=said) as caught:
        slice_lora(make_lora(model), pruned)
    assert "\n" not in str(caught.value)


def test_a_dense_model_is_refused():
    with pytest.raises(ModelError, match=r"no pruning\.json"):
        slice_lora(random_lora(dit()), dit())


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


def test_the_command_writes_what_the_function_gives_and_says_what_is_wrong(tmp_path, capsys):
    model = dit()
    pruned = apply_cut(copy.deepcopy(model), half(model))
    save_pretrained(pruned, tmp_path / "pruned")
    save_pretrained(model, tmp_path / "dense")
    lora = random_lora(model, "transformer.")
    save_file(lora, tmp_path / "lora.safetensors")
    places = ["--model", str(tmp_path / "pruned"), "--out", str(tmp_path / "out")]
    main(["slice-lora", str(tmp_path / "lora.safetensors"), *places])
    assert f"{sum(map(torch.numel, lora.values())):,}" in capsys.readouterr().out
    written = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    expected = slice_lora(lora, pruned)
    found = load_file(written)
    assert set(found) == set(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)
    in_memory = secateur.slice_lora(lora, model=pruned)
    assert all(torch.equal(in_memory[key], expected[key]) for key in expected)
    about = json.loads((tmp_path / "out" / "slicing.json").read_text())
    assert about["tensors"] == {"in": len(lora), "out": len(expected)}
    with pytest.raises(ModelError, match=r"no pruning\.json"):
        secateur.slice_lora(tmp_path / "lora.safetensors", model=str(tmp_path / "dense"), out=tmp_path / "no")
    (tmp_path / "bad.safetensors").write_bytes(b"nonsense")
    (tmp_path / "lora.bin").write_bytes(b"pickle")
    for bad, said in (("bad.safetensors", "cannot be read"), ("lora.bin", "pickle"), ("none", "does not exist")):
        with pytest.raises(ModelError, match=said):
            secateur.slice_lora(tmp_path / bad, model=str(tmp_path / "pruned"), out=tmp_path / "no")
    (tmp_path / "two").mkdir()
    for name in "ab":
        save_file(lora, tmp_path / "two" / f"{name}.safetensors")
    with pytest.raises(ModelError, match="holds 2 LoRA files"):
        secateur.slice_lora(tmp_path / "two", model=str(tmp_path / "pruned"), out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_mixed_ranks_are_in_the_metadata(tmp_path):
    model = unet()
    pruned = save_pretrained(apply_cut(copy.deepcopy(model), half(model)), tmp_path / "pruned")
    lora = random_lora(model, "unet.", rank=2, only="time_embedding.linear_2")
    lora |= random_lora(model, "unet.", rank=2, only="conv_out")
    lora |= random_lora(model, "unet.", rank=6, only="time_embedding.linear_1")
    save_file(lora, tmp_path / "lora.safetensors")
    written = secateur.slice_lora(tmp_path / "lora.safetensors", model=str(pruned), out=tmp_path / "out")
    with safe_open(written, "pt") as file:
        config = json.loads(file.metadata()[METADATA_KEY])
    assert (config["unet.r"], config["unet.lora_alpha"]) == (2, 2)
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] == {"time_embedding.linear_1": 6}
    again = read_lora(written)  # alpha / rank is 1 for each layer
    assert all(torch.equal(again[key], tensor) for key, tensor in load_file(written).items())


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


def test_the_lora_that_is_sliced_is_not_overwritten(tmp_path):
    model = dit()
    pruned = apply_cut(copy.deepcopy(model), half(model))
    (tmp_path / "lora").mkdir()
    place = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    save_file(random_lora(model, "transformer."), place)
    before = place.read_bytes()
    for lora in (place, tmp_path / "lora"):
        with pytest.raises(secateur.SecateurError, match="would be overwritten; choose another --out"):
            secateur.slice_lora(lora, model=pruned, out=tmp_path / "lora")
    assert place.read_bytes() == before
