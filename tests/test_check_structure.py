"""A declared structure is checked by comparing masks with removal; the message says where it is wrong."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from torch import nn
from torch.nn import functional as F

import secateur
from models import dit, flux, inputs_for, sd3, unet
from pipelines import dit_pipeline
from secateur.base.errors import ModelError, SecateurError
from secateur.cli import main
from secateur.models import registry
from secateur.models.families.dit import DIT
from secateur.models.registry import describe
from secateur.structure import Block, StructureBuilder, check_structure, count_checks

DIM, HEADS, HIDDEN = 12, 4, 10


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.left, self.right = nn.Linear(DIM, HIDDEN), nn.Linear(DIM, HIDDEN)
        self.down = nn.Linear(2 * HIDDEN, DIM)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.cat([self.left(x), self.right(x)], dim=-1).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(DIM, 3)
        nn.init.zeros_(self.head.weight)  # hides every error unless weights are drawn anew

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def declare(model, wrong=""):
    """The structure of `Net`, correct except for what `wrong` names."""
    builder = StructureBuilder()
    for i, layer in enumerate(model.layers):
        name, wrong_here = f"layers.{i}", wrong if i == 1 else ""
        per_channel = wrong_here == "channels taken for heads"
        units = (DIM, 1) if per_channel else (layer.num_heads, DIM // HEADS)
        heads = builder.dim(f"{name}.heads", *units)
        builder.writes(f"{name}.qkv", heads, repeats=2 if wrong_here == "a missing third" else 3)
        builder.reads(f"{name}.proj", heads)
        if wrong_here != "a stale attribute" and not per_channel:
            builder.follows(f"{name}.num_heads", heads)
        left = builder.dim(f"{name}.left", layer.left.out_features)
        right = builder.dim(f"{name}.right", layer.right.out_features)
        builder.writes(f"{name}.left", left, bias=wrong_here != "a missing bias")
        builder.writes(f"{name}.right", right)
        if wrong_here == "a wrong offset":
            builder.reads(f"{name}.down", right + left)
        elif wrong_here == "an overlap":
            builder.reads(f"{name}.down", left)
            builder.reads(f"{name}.down", right)
        elif wrong_here == "an unknown parameter":
            builder.reads(f"{name}.up", left)
            builder.reads(f"{name}.down", left + right)
        elif wrong_here == "an offset outside":
            builder.reads(f"{name}.down", [15, *left])
            builder.reads(f"{name}.down", [*left, *right])
        elif wrong_here == "an unread width":
            builder.reads(f"{name}.down", [*left, HIDDEN])
        else:
            builder.reads(f"{name}.down", left + right)
        builder.blocks[name] = Block(name, listed=True)
    if wrong == "a block that changes the shape":
        builder.blocks["head"] = Block("head", listed=False)
    return builder.build()


def checked(model, structure, inputs):
    return {check.name: check for check in check_structure(model, structure, inputs)}


def test_a_right_declaration_passes_and_the_model_does_not_change():
    model, x = Net(), torch.randn(2, 5, DIM)
    before = copy.deepcopy(model.state_dict())
    found = checked(model, declare(model), {"x": x})
    assert set(found) >= {"layers.0.heads", "layers.1.left", "layers.1.right", "layers.0", "layers.1", "random cut"}
    assert all(check.ok and check.hint == "" and check.error < 1e-5 for check in found.values())
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert model.training
    assert len(model.layers) == 2


def test_masks_and_removal_are_compared_without_tf32():
    conv = torch.backends.cudnn.conv
    before, model, seen = conv.fp32_precision, Net(), set()
    model.head.register_forward_hook(lambda *_: seen.add(conv.fp32_precision))
    conv.fp32_precision = "tf32"
    try:
        for check in check_structure(model, declare(model), {"x": torch.randn(2, 5, DIM)}):
            assert check.ok
            assert conv.fp32_precision == "tf32"
    finally:
        conv.fp32_precision = before
    assert seen == {"ieee"}


@pytest.mark.parametrize(
    ("wrong", "name", "hint"),
    [
        ("a missing bias", "layers.1.left", r"fails in layers\.1\.left: "),
        ("a missing third", "layers.1.heads", r"fails in layers\.1"),
        ("an unread width", "layers.1.right", r"fails in layers\.1\.down: "),
        ("a wrong offset", "layers.1.left", r"^first differs after layers\.1\.down$"),
        ("a stale attribute", "layers.1.heads", r"layers\.1\.num_heads is still 4$"),
        ("channels taken for heads", "layers.1.heads", r"(first differs after|fails in) layers\.1"),
        ("an overlap", "layers.1.right", r"layers\.1\.down\.weight axis 1 from 0 to 10 overlaps layers\.1\.left$"),
        ("an offset outside", "layers.1.left", r"layers\.1\.down\.weight axis 1 from 15 to 25 lies outside of"),
        ("an unknown parameter", "layers.1.left", r"the model has no parameter layers\.1\.up\.weight$"),
        ("a block that changes the shape", "head", r"fails in "),
    ],
)
def test_the_message_says_where_a_declaration_is_wrong(wrong, name, hint):
    model = Net()
    found = checked(model, declare(model, wrong), {"x": torch.randn(2, 5, DIM)})
    assert not found[name].ok
    assert re.search(hint, found[name].hint), found[name].hint
    others = [check for check in found.values() if check.name.startswith("layers.0")]
    assert all(check.ok for check in others)


@pytest.mark.parametrize("make", [dit, sd3, flux])
def test_our_own_declarations_pass(make):
    model = make()
    structure = describe(model)
    found = list(check_structure(model, structure, inputs_for(model)))
    assert len(found) == count_checks(structure, 3)
    assert all(check.ok for check in found)


def test_a_model_in_half_precision_is_checked_in_float32():
    model = sd3(num_layers=2).bfloat16()
    assert all(check.error < 1e-5 for check in check_structure(model, describe(model), inputs_for(model)))
    assert model.dtype == torch.bfloat16


def test_what_cannot_be_cut_is_named():
    model = unet(block_out_channels=(4, 4), norm_num_groups=4, attention_head_dim=None)
    found = checked(model, describe(model), inputs_for(model))
    assert any("nothing to cut" in check.hint for check in found.values())
    model = dit(num_layers=1)
    found = checked(model, describe(model), inputs_for(model))
    assert found["transformer_blocks.0"].hint == "the only listed block: it stays"


def test_the_command_prints_a_verdict(capsys):
    main(["check-structure", "digits-sit", "--size", "4"])
    said = capsys.readouterr().out
    assert "transformer_blocks.11.ff" in said
    assert "masks equal removal in all 39 comparisons (24 widths, 12 blocks)" in said


def test_the_command_checks_the_decoder_of_a_pipeline(tmp_path):
    dit_pipeline(tmp_path)
    rows = secateur.check_structure(str(tmp_path), component="vae", size=8, random_cuts=1)
    assert any(row.name.startswith("decoder.") for row in rows)
    assert all(row.ok for row in rows)


def test_the_command_fails_on_a_wrong_declaration(monkeypatch, capsys):
    def halves_swapped(model):
        builder = StructureBuilder()
        for i, block in enumerate(model.transformer_blocks):
            width = block.ff.net[2].in_features
            inner = builder.dim(f"{i}.ff", width - 2)
            builder.writes(f"transformer_blocks.{i}.ff.net.0.proj", inner)
            builder.reads(f"transformer_blocks.{i}.ff.net.2", [2, *inner])
        return builder.build()

    monkeypatch.setitem(registry._FAMILIES, DiTTransformer2DModel, replace(DIT, describe=halves_swapped))
    with pytest.raises(SystemExit) as stopped:
        main(["check-structure", "digits-sit", "--size", "4", "--random-cuts", "0"])
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert printed.out.count("WRONG") == 12
    assert "12 of 12 comparisons fail, the first of 0.ff: first differs after transformer_blocks.0.ff" in printed.err
    assert printed.err.strip().splitlines()[-1].startswith("secateur: ")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"size": 0}, SecateurError, "size is 0"),
        ({"random_cuts": -1}, SecateurError, "random_cuts is -1"),
        ({"size": 1}, ModelError, "digits-sit does not run at size 1: "),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(changes, error, said):
    with pytest.raises(error, match=said) as caught:
        secateur.check_structure("digits-sit", **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", [secateur.check_structure, secateur.inspect])
def test_a_part_that_is_not_declared_is_one_line(tmp_path, command):
    types = {"down_block_types": ("SkipDownBlock2D",), "up_block_types": ("SkipUpBlock2D",)}
    UNet2DModel(sample_size=8, block_out_channels=(32,), **types).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="block SkipDownBlock2D is not supported") as caught:
        command(str(tmp_path))
    assert "\n" not in str(caught.value)
