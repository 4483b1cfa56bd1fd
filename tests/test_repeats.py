"""Equal blocks are counted once: the same MACs and bytes as of a pass through all of them."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import models
from secateur.criteria import ScoringConfig
from secateur.criteria.taylor import TaylorOptions, memory_of_gradients
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig
from secateur.recovery.memory import recovery_memory
from secateur.runs.memory import _forward
from secateur.structure import Block, Cut, Structure, remove
from secateur.structure.cost import cost_model, count_repeated_flops, skeleton
from secateur.structure.known_values import without_memory
from secateur.structure.repeats import NONE, repeats

MAKE = {
    "dit": partial(models.dit, num_layers=6),
    "pixart": partial(models.pixart, num_layers=5),
    "flux": partial(models.flux, num_layers=4, num_single_layers=5),
}


@pytest.fixture
def both(monkeypatch):
    """What a function returns when equal blocks are counted once, and when all are run."""

    def run(count):
        with monkeypatch.context() as patched:
            patched.setattr("secateur.structure.repeats.NONE", None)  # none is run for want of equal calls
            once = count()
        with monkeypatch.context() as patched:
            patched.setattr("secateur.structure.repeats.repeats", lambda *_: NONE)
            return once, count()

    return run


@pytest.fixture(params=["dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pixart", "flux"))])
def model(request):
    return skeleton(MAKE[request.param]())


def test_the_second_of_equal_blocks_stands_for_all_but_the_first_and_the_last():
    model = models.dit(num_layers=7)
    found = repeats(model, describe(model))
    assert found.times == {"transformer_blocks.1": 5}
    assert found.others == {f"transformer_blocks.{i}": "transformer_blocks.1" for i in (2, 3, 4, 5)}
    assert found.like("transformer_blocks.4.ff") == "transformer_blocks.1.ff"
    remove(model, describe(model), Cut({"transformer_blocks.3.attn1.heads": (0,), "transformer_blocks.4.ff": (1, 2)}))
    assert repeats(model, describe(model)).times == {"transformer_blocks.1": 3}
    assert repeats(models.dit(num_layers=3), describe(models.dit(num_layers=3))) == NONE


def test_macs(model, both):
    structure = describe(model)
    once, all_run = both(lambda: cost_model(model, structure, example_inputs(model, 1)))
    assert once == all_run
    pruned = remove(copy.deepcopy(model), structure, models.half(model))
    once, all_run = both(lambda: cost_model(pruned, describe(pruned), example_inputs(model, 1)))
    assert once == all_run


def test_memory_of_forward_passes(model, both):
    once, all_run = both(lambda: _forward(model, 3))
    assert once == all_run > 0


@pytest.mark.parametrize("options", [TaylorOptions(), TaylorOptions("abs-then-sum")])
def test_memory_of_rankings(model, both, options):
    config = ScoringConfig(num_images=4, num_timesteps=3, batch_size=4)
    once, all_run = both(lambda: memory_of_gradients(model, FlowProcess(), config, options))
    assert once == all_run


@pytest.mark.parametrize(
    ("changes", "processes"),
    [
        ({"accumulation": 2}, 1),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (
                ({}, 1),
                ({}, 2),
                ({"gradient_checkpointing": True}, 1),
                ({"batch_size": 256}, 1),
                ({"freeze": ("*.attn*",)}, 1),
            )
        ),
    ],
)
def test_memory_of_recoveries(model, both, changes, processes):
    config = RecoveryConfig(**{"batch_size": 4, "objective": "distillation", **changes})
    pruned = remove(copy.deepcopy(model), describe(model), models.half(model))
    once, all_run = both(lambda: recovery_memory(pruned, model, FlowProcess(), config, processes=processes))
    assert once == all_run


class Halving(nn.Module):
    """Equal blocks on half as many tokens each."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(6))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
            x = x[:, : x.shape[1] // 2]
        return x


def test_equal_blocks_that_are_called_with_other_shapes_are_all_run():
    with torch.device("meta"):
        model, inputs = Halving(), {"x": torch.empty(1, 64, 4)}
    structure = Structure({}, {f"layers.{i}": Block(f"layers.{i}", listed=True) for i in range(6)})
    assert repeats(model, structure).others
    with without_memory():
        assert count_repeated_flops(model, structure, inputs)[""] == 2 * 16 * (64 + 32 + 16 + 8 + 4 + 2)
