"""What a network gives without each of its blocks in turn: equal to masks and removal, and its price."""

import copy

import pytest
import torch

from block_chains import Chain
from models import dit, output, unet
from secateur.criteria.blocks.drops import _masked, is_chain, outputs_without_each_block, passes_of
from secateur.models.registry import describe
from secateur.structure import Block, Cut, Structure, remove, select


@pytest.mark.parametrize("model", [unet(), dit(), dit(num_layers=1)], ids=["unet", "dit", "dit of one block"])
def test_dropped_equals_masked_and_removed_and_the_model_is_restored(model):
    structure, before = describe(model), output(model)
    with torch.no_grad():
        dropped = list(outputs_without_each_block(model, structure, lambda: output(model)))
        by_mask = list(_masked(model, structure, list(structure.blocks), lambda: output(model)))
    assert len(dropped) == len(structure.blocks)
    for name, found, expected in zip(structure.blocks, dropped, by_mask, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        if len(structure.blocks) > 1:
            removed = remove(copy.deepcopy(model), structure, Cut(removed_blocks=(name,)))
            torch.testing.assert_close(found, output(removed), rtol=1e-5, atol=1e-6)
    assert torch.equal(output(model), before)


class Between(Chain):
    """Adds to its stream between two blocks."""

    def forward(self, sample, timestep, return_dict=False):
        for index, block in enumerate(self.blocks):
            sample = block(sample, timestep) + (index == 1)
        return (sample,)


class Named(Chain):
    """Calls its blocks by the names of their arguments."""

    def forward(self, sample, timestep, return_dict=False):
        for block in self.blocks:
            sample = block(x=sample, timestep=timestep)
        return (sample,)


def test_blocks_that_are_no_chain_are_dropped_one_by_one():
    model = dit(num_layers=6)
    some = select(describe(model), exclude=("transformer_blocks.2",)).structure
    functions = [lambda x, t, i=i: (1 + i) * x.roll(1, -1) for i in range(5)]
    between, named = Between(*functions), Named(*functions)
    own = Structure({}, {f"blocks.{i}": Block(f"blocks.{i}", listed=True) for i in range(5)})
    x = torch.randn(2, 3, 4, 4)
    for network, structure, call in (
        (model, some, lambda: output(model)),
        (between, own, lambda: between(x, torch.ones(2))[0]),
        (named, own, lambda: named(x, torch.ones(2))[0]),
    ):
        with torch.no_grad():
            dropped = list(outputs_without_each_block(network, structure, call))
            by_mask = list(_masked(network, structure, list(structure.blocks), call))
        torch.testing.assert_close(dropped, by_mask)


def test_interrupted_drops_restore_the_model():
    model = dit()
    structure, before = describe(model), output(model)
    wrapped = model.transformer_blocks[0].forward
    model.transformer_blocks[0].forward = wrapped  # as accelerate's hooks do
    with torch.no_grad():
        walk = outputs_without_each_block(model, structure, lambda: output(model))
        for _ in range(3):
            next(walk)
        walk.close()
    assert torch.equal(output(model), before)
    assert model.transformer_blocks[0].__dict__["forward"] is wrapped
    assert not any("forward" in vars(block) or block._forward_hooks for block in model.transformer_blocks[1:])


@pytest.mark.parametrize(("included", "count"), [("*", 9), ("*.[012]", 8), ("*.[12]", 6), ("*.[23]", 6), ("*.1", 3)])
def test_the_price_counts_the_runs_of_blocks(included, count):
    model = dit()
    present = list(describe(model).blocks)
    structure = select(describe(model), [included]).structure
    runs = []
    for block in model.transformer_blocks:
        block.attn1.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        list(outputs_without_each_block(model, structure, lambda: output(model)))
    assert is_chain(structure)
    assert len(runs) == count
    assert passes_of(structure, present) == 1 + count / len(present)


def test_blocks_that_are_not_next_to_each_other_cost_a_pass_each():
    structure = describe(dit())
    some = select(structure, exclude=["*.1"]).structure
    assert passes_of(some, list(structure.blocks)) == 1 + len(some.blocks)


def test_blocks_that_are_no_chain_cost_a_pass_each():
    structure = describe(unet())
    assert not is_chain(structure)
    assert passes_of(structure, list(structure.blocks)) == 1 + len(structure.blocks)
