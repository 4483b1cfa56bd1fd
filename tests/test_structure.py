"""Invariant 1, masked equals removed, on any valid cut of any supported architecture; and what removal refuses."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import secateur
from models import ALL_STRATEGIES, cuts, dit, inputs_for, output, unet
from secateur.models.pricing import priced
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
    name_after,
    remove,
)
from secateur.structure.cost import cost_model, skeleton
from secateur.structure.masks import masked_group_norm

PROPERTY = settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
AT_LENGTH = settings(PROPERTY, max_examples=300)


# Text-conditional networks compute some of their embeddings and norms in float32, whatever the model's dtype.
# Sana's linear attention divides by sums taken in float32, which magnifies their rounding.
ROUNDING = {"unet": 1e-9, "dit": 1e-9, "autoencoder": 1e-9, "uvit": 1e-9, "sana": 1e-5}


@PROPERTY
@given(data=st.data())
@pytest.mark.parametrize("name", ALL_STRATEGIES)
def test_masked_equals_removed(name, data):
    check_masked_equals_removed(name, data)


@PROPERTY
@given(data=st.data())
@pytest.mark.parametrize("name", ALL_STRATEGIES)
def test_names_after_a_cut_are_those_of_the_model_that_was_cut(name, data):
    model = data.draw(ALL_STRATEGIES[name])
    structure = describe(model)
    cut = Cut({}, data.draw(cuts(structure)).removed_blocks)
    before = {name_after(structure, cut, parameter): tensor for parameter, tensor in model.named_parameters()}
    before.pop(None, None)
    after = dict(remove(model, structure, cut).named_parameters())
    assert {parameter: id(tensor) for parameter, tensor in before.items()} == {k: id(v) for k, v in after.items()}


@pytest.mark.torture
@AT_LENGTH
@given(data=st.data())
@pytest.mark.parametrize("name", ALL_STRATEGIES)
def test_masked_equals_removed_at_length(name, data):
    check_masked_equals_removed(name, data)


def check_masked_equals_removed(name, data):
    model = data.draw(ALL_STRATEGIES[name]).double()
    structure = describe(model)
    cut = data.draw(cuts(structure))
    with masked(model, structure, masks_of(cut, structure)):
        expected = double_output(model)
    found = double_output(remove(copy.deepcopy(model), structure, cut))
    tolerance = ROUNDING.get(name, 1e-6)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max() + 1))


@settings(PROPERTY, max_examples=6)
@given(data=st.data())
@pytest.mark.parametrize("name", ALL_STRATEGIES)
def test_cost_of_a_cut_equals_the_counted_cost_of_the_removed_model(name, data):
    model = data.draw(ALL_STRATEGIES[name])
    structure = describe(model)
    cut = data.draw(cuts(structure))
    cost = cost_model(model, structure, inputs_for(model))
    predicted = cost({name: len(units) for name, units in cut.kept.items()}, cut.removed_blocks)
    removed = remove(copy.deepcopy(model), structure, cut)
    counted = cost_model(removed, describe(removed), inputs_for(removed))({})
    assert predicted.parameters == counted.parameters == sum(p.numel() for p in removed.parameters())
    assert predicted.macs == pytest.approx(counted.macs, rel=1e-9)


class Routed(nn.Linear):
    """A network that selects rows by their values."""

    def forward(self, x):
        return super().forward(x[x.sum(1) > 0])


def test_a_pass_that_depends_on_its_values_has_no_price_and_says_so():
    with pytest.raises(secateur.SecateurError, match=r"the MACs of Routed cannot be counted without running it: .+"):
        priced(Routed(2, 2), Structure({}, {}), {"x": torch.ones(3, 2)})


def double_output(model):
    torch.set_default_dtype(torch.float64)
    try:
        return output(model)
    finally:
        torch.set_default_dtype(torch.float32)


def test_masks_change_nothing_once_lifted_and_when_all_are_one():
    model = unet()
    structure = describe(model)
    before = output(model)
    with masked(model, structure, masks_of(Cut(), structure)):
        torch.testing.assert_close(output(model), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(output(model), before)


def test_soft_masks_are_read_at_every_call():
    model = unet()
    structure = describe(model)
    masks = masks_of(Cut(), structure)
    with masked(model, structure, masks):
        full = output(model)
        masks["down_blocks.0.resnets.0.inner"] = torch.full((8,), 0.5)
        assert not torch.allclose(output(model), full)


def test_gradients_reach_soft_masks():
    model = unet()
    structure = describe(model)
    masks = {name: value.requires_grad_() for name, value in masks_of(Cut(), structure).items()}
    with masked(model, structure, masks):
        model(**inputs_for(model), return_dict=False)[0].square().mean().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in masks.values())


def test_masked_statistics_equal_physical_removal():
    """T6 of the gradient-flow specification: plain masking does not equal removal, weighted statistics do."""
    x = torch.randn(2, 12, 5, 5, dtype=torch.float64) + torch.arange(12).reshape(12, 1, 1)
    weight, bias = torch.randn(2, 12, dtype=torch.float64)
    kept = torch.tensor([0, 1, 4, 5, 8, 9])  # two of each of three groups
    mask = torch.zeros(12, dtype=torch.float64)
    mask[kept] = 1
    physical = F.group_norm(x[:, kept], 3, weight[kept], bias[kept])
    weighted = masked_group_norm(x, mask, 3, weight, bias, 1e-5)[:, kept]
    plain = F.group_norm(x * mask.reshape(1, -1, 1, 1), 3, weight, bias)[:, kept]
    torch.testing.assert_close(weighted, physical, rtol=1e-12, atol=1e-12)
    assert (plain - physical).norm() / physical.norm() > 0.1


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


def test_norm_groups_that_straddle_a_skip_are_cut_on_both_sides():
    model = unet(block_out_channels=(8, 24), norm_num_groups=4)  # 32 channels in groups of 8, border at 24 of 24 + 8
    structure = describe(model)
    straddling = [dim for dim in structure.dims.values() if len(set(dim.cells)) > 1]
    assert straddling
    dim = straddling[0]
    uneven = tuple(range(dim.size // 2))
    with pytest.raises(ValueError, match="evenly"):
        check_cut(structure, Cut({dim.name: uneven}))


def test_linked_dims_must_move_together():
    structure = describe(unet())
    linked = next(dims for dims in structure.links.values() if len(dims) > 1)
    half = tuple(unit for cell in linked[0].cell_ranges() for unit in cell[: len(cell) // 2])
    with pytest.raises(ValueError, match="evenly"):
        check_cut(structure, Cut({linked[0].name: half}))


@pytest.mark.parametrize("units", [(), (3, 1), (0, 0), (-1, 0), (0, 999)])
def test_bad_indices_are_refused(units):
    structure = describe(dit())
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.ff"):
        check_cut(structure, Cut({"transformer_blocks.0.ff": units}))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="nowhere"):
        check_cut(describe(dit()), Cut({}, ("nowhere",)))


def test_attributes_follow_the_weights():
    model = unet(block_out_channels=(8, 16), attention_head_dim=4)
    structure = describe(model)
    heads = {name: (0, 2) for name in structure.dims if name.endswith(".heads")}
    remove(model, structure, Cut(heads))
    attention = model.mid_block.attentions[0]
    assert (attention.heads, attention.inner_dim, attention.to_q.out_features) == (2, 8, 8)
    assert attention.scale == 4**-0.5


def test_a_norm_without_weights_elsewhere_is_left_alone():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1), nn.GroupNorm(2, 4, affine=False))
    builder = StructureBuilder()
    hidden = builder.dim("hidden", 8)
    builder.writes("0", hidden)
    builder.reads("1", hidden)
    remove(model, builder.build(), Cut({"hidden": (0, 1, 5)}))
    assert model(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)
    assert model[2].num_channels == 4


def test_one_head_keeps_its_scale_by_rescaled_queries():
    model = unet(attention_head_dim=None)
    structure = describe(model)
    name = "mid_block.attentions.0.channels"
    assert structure.dims[name].rescaled
    before = model.mid_block.attentions[0].to_q.weight.clone()
    remove(model, structure, Cut({name: tuple(range(4))}))
    torch.testing.assert_close(model.mid_block.attentions[0].to_q.weight, before[:4] * (4 / 16) ** 0.5)


def test_removal_keeps_training_flags():
    model = unet()
    model.conv_in.weight.requires_grad_(False)
    structure = describe(model)
    halves = {
        dim.name: tuple(unit for cell in dim.cell_ranges() for unit in cell[::2]) for dim in structure.links["conv_in"]
    }
    remove(model, structure, Cut(halves))
    assert not model.conv_in.weight.requires_grad
    assert model.conv_out.weight.requires_grad


def test_the_skeleton_shares_no_memory():
    model = dit()
    hollow = skeleton(model)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_the_skeleton_shares_tables_that_are_no_buffers():
    """As Qwen-Image and Z-Image keep rotary frequencies; a copy inside of a fake mode would fail."""
    model = dit()
    model.tables = SimpleNamespace(rows=[torch.arange(3.0)], columns=torch.arange(4.0))
    with FakeTensorMode(allow_non_fake_inputs=True):
        hollow = skeleton(model, "cpu")
    assert hollow.tables.rows[0] is model.tables.rows[0]
    assert hollow.tables is not model.tables


def test_unsupported_blocks_and_architectures_are_named():
    skip = UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("SkipDownBlock2D",),
        up_block_types=("SkipUpBlock2D",),
    )
    with pytest.raises(ValueError, match="SkipDownBlock2D"):
        describe(skip)
    with pytest.raises(ValueError, match=r"Identity .*UNet2DModel, .*docs/adding-an-architecture.md"):
        describe(nn.Identity())


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


def test_dit_xl_has_the_published_sizes_at_every_depth():
    """DiT-XL/2 at 256 px (entry by entry: blocks, M parameters, GMACs); the authors' code has one embedding for all."""
    with torch.device("meta"):
        model = DiTTransformer2DModel(sample_size=32, out_channels=8)
    structure = describe(model)
    cost = cost_model(model, structure, inputs_for(model))
    embedding = model.transformer_blocks[0].norm1.emb
    again = sum(parameter.numel() for parameter in embedding.parameters())
    passes = sum(layer.weight.numel() for layer in embedding.modules() if isinstance(layer, nn.Linear))
    published = [(28, 675.1, 118.6), (20, 483.9, 84.7), (19, 460.0, 80.5), (14, 340.5, 59.3), (13, 316.6, 55.1)]
    for kept, parameters, macs in published:
        found = cost({}, list(structure.blocks)[kept:])
        positions = 256 * 1152  # a parameter of the authors' code that diffusers keeps as a buffer
        assert (found.parameters - (kept - 1) * again + positions) / 1e6 == pytest.approx(parameters, abs=0.06)
        assert (found.macs - (kept - 1) * passes) / 1e9 == pytest.approx(macs, abs=0.06)


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
