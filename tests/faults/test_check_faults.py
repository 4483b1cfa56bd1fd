"""Any wrong declaration of any network that torch runs is reported as a row of the table, without a traceback."""

import pytest
import torch
from torch import nn

from secateur.structure import Block, Skip, StructureBuilder, check_structure


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.conv2(self.conv1(x).relu())


class Net(nn.Module):
    """Two residual blocks; `returns` makes the output of the sample."""

    def __init__(self, returns=lambda x: x):
        super().__init__()
        self.a, self.b, self.returns = Residual(), Residual(), returns

    def forward(self, x):
        return self.returns(self.b(self.a(x)))


def describe_blindly(model):
    structure = StructureBuilder()
    for name in "ab":
        inner = structure.dim(f"{name}.inner", model.get_submodule(name).conv1.out_features)
        structure.writes(f"{name}.conv1", inner)
        structure.reads(f"{name}.conv2", inner)
        structure.blocks[name] = Block(name, listed=False)
    return structure.build()


def describe(model):
    structure = StructureBuilder()
    for name in "ab":
        block = model.get_submodule(name)
        if isinstance(block, Skip):
            continue
        inner = structure.dim(f"{name}.inner", block.conv1.out_features)
        structure.writes(f"{name}.conv1", inner)
        structure.reads(f"{name}.conv2", inner)
        structure.blocks[name] = Block(name, listed=False)
    return structure.build()


def checks(model, described, **options):
    return list(check_structure(model, described(model), {"x": torch.randn(2, 8)}, **options))


RETURNS = [lambda x: x, lambda x: (x,), lambda x: {"sample": x}, lambda x: [{"deep": (x, None)}]]


@pytest.mark.parametrize("returns", RETURNS)
def test_any_kind_of_output_is_compared(returns):
    found = checks(Net(returns), describe, describe=describe)
    assert len(found) == 7
    assert all(check.ok for check in found)


def test_a_cut_model_must_be_described_again():
    assert all(check.ok for check in checks(Net(), describe_blindly))
    found = {check.name: check for check in checks(Net(), describe_blindly, random_cuts=0, describe=describe_blindly)}
    assert found["a.inner"].ok
    assert not found["a"].ok
    assert "cannot be described again: 'Skip' object has no attribute 'conv1'; a block that left" in found["a"].hint


ERRORS = [AssertionError(), KeyError(0), ZeroDivisionError("x"), NotImplementedError("y"), StopIteration()]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_whatever_a_forward_pass_raises_is_a_row(error):
    class Fails(Net):
        def forward(self, x):
            if self.a.conv1.out_features != 8:
                raise error
            return super().forward(x)

    def declared(model):
        structure = StructureBuilder()
        inner = structure.dim("inner", 8)
        structure.writes("a.conv1", inner)
        structure.reads("a.conv2", inner)
        return structure.build()

    (check,) = checks(Fails(), declared, random_cuts=0)
    assert not check.ok
    assert "fails in" in check.hint


def test_a_model_that_does_not_run_at_all_is_a_row():
    def fails(x):
        raise AssertionError("no luck")

    (check,) = checks(Net(fails), describe)
    assert (check.ok, check.hint) == (False, "the model itself fails: no luck")


@pytest.mark.parametrize("container", [nn.Sequential, lambda *blocks: nn.ModuleList(blocks)])
def test_blocks_are_removed_from_a_sequential_as_from_a_list(container):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = container(*(nn.Linear(8, 8) for _ in range(3)))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    def declared(model):
        structure = StructureBuilder()
        for index in range(len(model.layers)):
            structure.blocks[f"layers.{index}"] = Block(f"layers.{index}", listed=True)
        return structure.build()

    found = checks(Rows(), declared, describe=declared)
    assert len(found) >= 3
    assert all(check.ok for check in found)


def test_a_network_with_return_dict_is_called_without_it():
    class Answers(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 8)

        def forward(self, x, return_dict=True):
            x = self.down(self.up(x).relu())
            return {"sample": x} if return_dict else (x,)

    def declared(model):
        structure = StructureBuilder()
        width = structure.dim("hidden", model.up.out_features)
        structure.writes("up", width)
        structure.reads("down", width)
        return structure.build()

    assert all(check.ok for check in checks(Answers(), declared))
