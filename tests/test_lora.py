"""A LoRA merged before the cut gives the function that the sliced LoRA merged after it gives."""

import copy
import json
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import secateur
from loras import KOHYA, PEFT, merged, random_lora, without
from models import STRATEGIES, cuts, dit, half, output, pixart, sd3, sdxl, unet, unet_condition
from secateur.base.errors import ModelError
from secateur.cli import main
from secateur.io.checkpoint import save_pretrained
from secateur.io.lora import slice_lora
from secateur.io.lora_files import METADATA_KEY, read_lora
from secateur.io.manifest import apply_cut
from secateur.models.registry import describe

OLD = (".lora.down.weight", ".lora.up.weight")


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
