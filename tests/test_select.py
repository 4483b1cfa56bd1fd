"""Patterns choose what may be cut; linked widths are chosen together."""

import pytest
import torch

from models import dit, inputs_for, sd3, unet
from secateur.models.registry import describe
from secateur.structure import (
    Block,
    Cut,
    Structure,
    StructureBuilder,
    check_structure,
    masked,
    masks_of,
    remove,
    select,
)
from secateur.structure.cost import cost_model


@pytest.fixture(scope="module")
def structure():
    return describe(dit())


def chosen(selection):
    return {*selection.structure.dims, *selection.structure.blocks}


def test_without_patterns_everything_may_be_cut(structure):
    selection = select(structure)
    assert selection.structure == structure
    assert selection.left_out == {}


def test_names_of_widths_choose(structure):
    assert chosen(select(structure, ["*.heads"])) == {f"transformer_blocks.{i}.attn1.heads" for i in range(4)}
    assert chosen(select(structure, exclude=["*.heads"])) == {
        name for i in range(4) for name in (f"transformer_blocks.{i}.ff", f"transformer_blocks.{i}")
    }


def test_a_module_is_excluded_with_all_that_it_holds(structure):
    for pattern in ("transformer_blocks.2", "transformer_blocks.2.*"):
        selection = select(structure, exclude=[pattern])
        assert set(selection.left_out) == {f"transformer_blocks.2{end}" for end in ("", ".ff", ".attn1.heads")}
        assert set(selection.left_out.values()) == {f"excluded by {pattern!r}"}


def test_one_layer_may_be_named(structure):
    selection = select(structure, ["transformer_blocks.[01].*"], ["*.net.2"])
    assert chosen(selection) == {f"transformer_blocks.{i}.attn1.heads" for i in (0, 1)}
    assert selection.left_out["transformer_blocks.3.ff"] == "excluded by '*.net.2'"
    assert selection.left_out["transformer_blocks.0"] == "excluded by '*.net.2'"


def test_a_block_with_an_excluded_layer_stays(structure):
    selection = select(structure, exclude=["transformer_blocks.1.attn1.to_q"])
    assert set(selection.left_out) == {"transformer_blocks.1", "transformer_blocks.1.attn1.heads"}


def test_an_excluded_part_of_a_stream_keeps_the_stream_whole():
    model = unet()
    before = {name: tensor for name, tensor in model.named_parameters() if name.startswith("mid_block.")}
    structure = select(describe(model), exclude=["mid_block.*"]).structure
    assert len(structure.dims) > 3
    kept = {
        dim.name: tuple(unit for cell in dim.cell_ranges() for unit in cell[: len(cell) // dim.levels])
        for dim in structure.dims.values()
    }
    remove(model, structure, Cut(kept))
    assert all(tensor is before[name] for name, tensor in model.named_parameters() if name in before)


def test_linked_widths_are_excluded_together_and_the_named_one_is_reported():
    builder = StructureBuilder()
    left, right, alone = builder.dim("left", 4), builder.dim("right", 8), builder.dim("alone", 2)
    builder.normalizes("norm", left + right, 3)
    builder.writes("a", left)
    builder.writes("b", right)
    builder.writes("c", alone)
    builder.blocks["c"] = Block("c", listed=False)
    selection = select(builder.build(), exclude=["b"])
    assert chosen(selection) == {"alone", "c"}
    assert selection.left_out == {
        "left": "moves with right, which is excluded by 'b' (link left)",
        "right": "excluded by 'b'",
    }


def test_a_pattern_that_matches_nothing_is_refused(structure):
    with pytest.raises(ValueError, match=r"'transformer_block\.\*' matches no width"):
        select(structure, exclude=["transformer_block.*"])


@pytest.mark.parametrize("left_out", ["transformer_blocks.0", "transformer_blocks.1"])
def test_the_head_of_a_dit_reads_the_first_remaining_block(left_out):
    model = dit()
    whole = describe(model)
    structure = select(whole, exclude=[left_out]).structure
    cut = Cut({}, tuple(name for name in structure.blocks if name != "transformer_blocks.3"))
    inputs = inputs_for(model)
    expected_cost = cost_model(model, whole, inputs)({}, cut.removed_blocks)
    assert cost_model(model, structure, inputs)({}, cut.removed_blocks) == expected_cost
    with torch.no_grad():
        with masked(model, structure, masks_of(cut, structure)):
            expected = model(**inputs)[0]
        torch.testing.assert_close(remove(model, structure, cut)(**inputs)[0], expected, rtol=1e-5, atol=1e-5)


def test_all_included_blocks_may_leave_if_others_stay():
    model = dit()
    structure = select(select(describe(model), exclude=["transformer_blocks.0"]).structure, ["*.[12]"]).structure
    both = ["transformer_blocks.1", "transformer_blocks.2"]
    assert structure.removable(both) == both
    smaller = remove(model, structure, Cut({}, tuple(both)))
    assert list(describe(smaller).blocks) == ["transformer_blocks.0", "transformer_blocks.1"]
    assert all(check.ok for check in check_structure(dit(), structure, inputs_for(model), random_cuts=1))


def test_one_listed_block_stays_if_only_skipped_ones_are_left_out():
    blocks = {name: Block(name, listed=name != "skipped") for name in ("a", "b", "skipped")}
    assert select(Structure({}, blocks), exclude=["skipped"]).structure.removable(["a", "b"]) == ["a"]


def test_a_selection_is_still_a_valid_structure():
    model = sd3()
    structure = select(describe(model), exclude=["*.ff_context", "transformer_blocks.1.attn.to_q"]).structure
    assert all(check.ok for check in check_structure(model, structure, inputs_for(model), random_cuts=1))
