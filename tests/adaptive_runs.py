"""Pruners that remove blocks in stages from a tiny transformer, and their decisions."""

import json

import torch

from models import dit, inputs_for
from secateur.models.registry import describe
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig, recover
from secateur.schedules import Adaptive, AdaptiveConfig, CutConfig, Target, block_cuts, parse_target
from secateur.schedules.proxies import Judgement
from secateur.schedules.rescore import Scored
from secateur.structure import without_blocks
from secateur.structure.cost import cost_model
from training_runs import images

DEPTH = CutConfig(granularity="depth")
CONFIG = RecoveryConfig(steps=8, batch_size=4, learning_rate=3e-3, checkpoint_every=2, log_every=1)


def sit(layers=8):
    return dit(num_layers=layers)


def no_latency(model, structure):
    def measure(cut):
        raise AssertionError

    return measure


def macs_of(model):
    return cost_model(model, describe(model), inputs_for(model))({}).macs


def by_order(*order):
    """A scorer that ranks the blocks at these positions of the dense model lowest, in this order."""

    def scorer(model):
        names = list(describe(model).blocks)
        return Scored({name: torch.tensor([float(order.index(i))]).double() for i, name in enumerate(names)})

    return scorer


def random_scorer(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def scorer(model):
        return Scored({name: torch.rand(1, generator=generator).double() for name in describe(model).blocks})

    return scorer


def depth_scorer(model):
    """A scorer that ranks blocks by their weights: a pure function of the model, so that a resumed run repeats it."""
    return Scored(
        {
            name: model.get_submodule(name).ff.net[2].weight.detach().double().norm().reshape(1)
            for name in describe(model).blocks
        }
    )


def by_weights(model):
    """A fast judgement that is a pure function of the model."""
    norms = [block.ff.net[0].proj.weight.detach().double().norm().item() for block in model.transformer_blocks]
    return Judgement(1.0, sum(norms) / len(norms), max(norms))


def adaptive(model, target="blocks=3", scorer=depth_scorer, judged=by_weights, steps=8, **changes):
    config = AdaptiveConfig(**{"until": 0.5} | changes)  # a quarter of so few steps is too short for four stages
    goal = parse_target(target)
    dense = {"macs": macs_of(model), "params": sum(p.numel() for p in model.parameters())}.get(goal.metric, 1.0)
    amount = Target(goal.metric, goal.amount(dense), is_fraction=False)
    return Adaptive(
        config,
        config.boundaries(steps),
        block_cuts(amount, DEPTH, no_latency),
        scorer(model).scores,
        scorer,
        judged,
        macs_of(model),
        {"target": target},
        {"target": target},
        "dense",
    )


def decisions(pruner, model):
    """All decisions for a model that is not trained in between; their memory is converted to JSON and back."""
    pruning, found = {}, []
    for step in pruner.boundaries:
        assert pruner.due(step)
        decision = pruner.decide(model, model, pruning, step)
        if decision.cut is not None:
            model = without_blocks(model, describe(model), decision.cut.removed_blocks)
        found.append(decision)
        pruning = json.loads(json.dumps(decision.pruning))
    return found, model


def run(folder, data=None, config=CONFIG, **changes):
    model = sit()
    pruner = adaptive(model, steps=config.steps, **changes)
    average = recover(model, FlowProcess(), data or images(), config, folder, pruner=pruner)
    return model, average
