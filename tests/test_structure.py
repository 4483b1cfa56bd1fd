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
    Cut,
    Structure,
    check_cut,
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
