"""Structures declared layer by layer for small modules: norms, gates, blocks, and weights that several layers share."""

import pytest
import torch
from torch import nn

import secateur
from secateur.models.registry import describe
from secateur.structure import (
    Block,
    Cut,
    Structure,
    StructureBuilder,
    check_cut,
    kept_entries,
    masked,
    masks_of,
    remove,
)
from secateur.structure.cost import cost_model


def test_norms_after_a_skip_refine_the_cells_of_both_sides():
    builder = StructureBuilder()
    left, right = builder.dim("left", 12), builder.dim("right", 6)
    builder.normalizes("own", left, 3)  # groups of 4
    builder.normalizes("both", left + right, 3)  # groups of 6, borders at 6 and 12 of 18
    structure = builder.build()
    assert structure.dims["left"].cells == (4, 2, 2, 4)
    assert structure.dims["right"].cells == (6,)
    assert structure.dims["left"].link == structure.dims["right"].link
    assert {dim.levels for dim in structure.dims.values()} == {2}


def test_a_norm_without_weights_elsewhere_is_left_alone():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.GroupNorm(2, 4, affine=False))
    builder = StructureBuilder()
    hidden = builder.dim("hidden", 8)
    builder.writes("0", hidden)
    builder.reads("1", hidden)
    remove(model, builder.build(), Cut({"hidden": (0, 1, 5)}))
    assert model(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)
    assert model[2].num_channels == 4


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.down(self.up(x).relu())


def test_a_user_declares_an_architecture_in_a_few_lines():
    def declare(model):
        builder = StructureBuilder()
        hidden = builder.dim("hidden", model.up.out_features)
        builder.writes("up", hidden)
        builder.reads("down", hidden)
        return builder.build()

    secateur.register_structure(Mlp, declare)
    model, x = Mlp(), torch.randn(3, 4)
    structure = describe(model)
    cut = Cut({"hidden": (0, 2, 5)})
    with masked(model, structure, masks_of(cut, structure)):
        expected = model(x)
    torch.testing.assert_close(remove(model, structure, cut)(x), expected)


class Gated(nn.Module):
    """Queries of a convolution, which are normalized, and a reader, called by keyword if `named`."""

    def __init__(self, named):
        super().__init__()
        self.query, self.key, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)
        self.out, self.named = nn.Conv2d(8, 3, 1), named

    def forward(self, x):
        joined = self.query(x).exp() * self.key(x)
        return self.out(input=self.norm(input=joined)) if self.named else self.out(self.norm(joined))


@pytest.mark.parametrize("named", [False, True])
def test_a_gate_masks_the_channels_of_a_convolution_and_layers_may_be_called_by_keyword(named):
    model, x = Gated(named), torch.randn(2, 3, 5, 7)
    builder = StructureBuilder()
    hidden = builder.dim("hidden", 8)
    builder.writes("query", hidden, gate=True)
    builder.writes("key", hidden)
    builder.normalizes("norm", hidden, 2)
    builder.reads("out", hidden)
    structure, cut = builder.build(), Cut({"hidden": (0, 2, 5, 7)})
    with masked(model, structure, masks_of(cut, structure)):
        expected = model(x)
        assert (model.query(x) == 0).sum() == 2 * 4 * 5 * 7
    torch.testing.assert_close(remove(model, structure, cut)(x), expected)


def test_the_last_listed_block_is_not_removed():
    structure = Structure({}, {name: Block(name, listed=name != "skipped") for name in ("a", "b", "skipped")})
    assert structure.removable(["b", "skipped"]) == ["b", "skipped"]
    assert structure.removable(["b", "a", "skipped"]) == ["b", "skipped"]
    assert structure.removable(["skipped", "a", "b"]) == ["skipped", "a"]
    assert Structure({}, {"a": Block("a", listed=False)}).removable(["a"]) == ["a"]
    with pytest.raises(ValueError, match="at least one block must stay"):
        check_cut(structure, Cut({}, ("a", "b")))


def test_a_block_inside_another_is_refused():
    builder = StructureBuilder()
    for name in ("layers.1", "layers.10", "layers.10.mlp"):
        builder.blocks[name] = Block(name, listed=name != "layers.10.mlp")
    with pytest.raises(ValueError, match=r"block layers\.10\.mlp lies inside block layers\.10: declare one of them"):
        builder.build()


class Conditioned(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x, temb):
        return x + self.inner(x + temb)


class Conditioning(nn.Sequential):
    """A list that also hands the time embedding to its blocks, as in the U-Nets of guided diffusion."""

    def forward(self, x, temb):
        for block in self:
            x = block(x, temb)
        return x


def test_a_list_that_loses_blocks_keeps_its_class():
    model, x, temb = Conditioning(*(Conditioned() for _ in range(3))), torch.randn(2, 4), torch.randn(2, 4)
    network = nn.ModuleDict({"blocks": model})
    structure = Structure({}, {f"blocks.{i}": Block(f"blocks.{i}", listed=True) for i in range(3)})
    expected = model[2](model[0](x, temb), temb)
    remove(network, structure, Cut({}, ("blocks.1",)))
    torch.testing.assert_close(network["blocks"](x, temb), expected)


def test_depthwise_convolutions_of_several_outputs_for_each_input_are_left_alone():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 12, 3, groups=4))
    x = torch.randn(1, 4, 5, 5)
    builder = StructureBuilder()
    hidden = builder.dim("hidden", 8)
    builder.writes("0", hidden)
    builder.reads("1", hidden)
    structure, cut = builder.build(), Cut({"hidden": (0, 1, 5)})
    with masked(model, structure, masks_of(cut, structure)):
        expected = model(x)
    torch.testing.assert_close(remove(model, structure, cut)(x), expected)
    assert (model[2].groups, model[2].in_channels, model[2].out_channels) == (4, 4, 12)


class Tied(nn.Module):
    """Two layers whose inner matrices are one tensor each."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Mlp(), Mlp()
        self.second.up.weight, self.second.down.weight = self.first.up.weight, self.first.down.weight

    def forward(self, x):
        return self.second(self.first(x))

    @staticmethod
    def declare(model, names=("first", "second")):
        builder = StructureBuilder()
        hidden = builder.dim("hidden", model.first.up.out_features)
        for name in names:
            builder.writes(f"{name}.up", hidden)
            builder.reads(f"{name}.down", hidden)
        return builder.build()


def test_tied_weights_are_cut_once_and_remain_tied():
    model, x, cut = Tied(), torch.randn(3, 4), Cut({"hidden": (0, 2, 5)})
    structure = Tied.declare(model)
    with masked(model, structure, masks_of(cut, structure)):
        expected = model(x)
    remove(model, structure, cut)
    torch.testing.assert_close(model(x), expected)
    assert model.second.up.weight is model.first.up.weight
    assert model.second.up.bias is not model.first.up.bias


def test_the_cost_of_tied_weights_follows_every_layer_that_has_them():
    model, cut, inputs = Tied(), Cut({"hidden": (0, 2, 5)}), {"x": torch.randn(1, 4)}
    cost = cost_model(model, Tied.declare(model), inputs)
    assert cost({}).macs == 2 * 2 * 4 * 6
    assert cost({}).attention_macs == 0
    remove(model, Tied.declare(model), cut)
    assert cost({"hidden": 3}) == cost_model(model, Tied.declare(model), inputs)({})
    assert cost({"hidden": 3}).parameters == sum(parameter.numel() for parameter in model.parameters())


def test_weights_tied_over_blocks_stay_with_those_that_are_left():
    model, inputs = nn.Sequential(Mlp(), Mlp(), Mlp()), {"input": torch.randn(1, 4)}
    for block in model[1:]:
        block.up.weight = model[0].up.weight
    structure = Structure({}, {str(i): Block(str(i), listed=False) for i in range(3)})
    cost = cost_model(model, structure, inputs)({}, ("0",))
    assert cost.parameters == sum(parameter.numel() for parameter in model[1:].parameters())
    assert cost.macs == 2 * 2 * 4 * 6


def test_entries_to_keep_are_asked_for_under_one_name_each():
    model = Tied()
    listed_once = {name: parameter.shape for name, parameter in model.named_parameters()}
    entries = kept_entries(Tied.declare(model), Cut({"hidden": (0, 2)}), listed_once)
    assert set(entries) == set(listed_once) - {"first.down.bias", "second.down.bias"}


def test_a_tied_weight_that_is_declared_under_one_name_is_refused():
    model = Tied()
    with pytest.raises(ValueError, match=r"first\.up\.weight and second\.up\.weight are one tensor"):
        remove(model, Tied.declare(model, ("second",)), Cut({"hidden": (0,)}))


def test_a_parameter_that_the_model_lacks_is_refused():
    with pytest.raises(ValueError, match=r"the model has no parameter first\.down\.weight"):
        remove(Mlp(), Tied.declare(Tied()), Cut({"hidden": (0,)}))
