"""Pruners for tiny models as `compress` makes them, and their decisions."""

import json
from dataclasses import asdict, replace

import torch

from models import dit
from secateur.criteria import ScoringConfig, score
from secateur.data.conditions import accepts
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig, recover
from secateur.schedules import (
    CutConfig,
    Progressive,
    ProgressiveConfig,
    no_scores,
    one_shot,
    parse_target,
    stage_scorer,
)
from secateur.schedules.rescore import Scored
from secateur.structure import masked
from secateur.structure.cost import cost_model
from training_runs import images

QUICK = ProgressiveConfig(stages=2, decay_stages=2, stage_steps=1)  # units are removed before step 3
SCORING = ScoringConfig(num_timesteps=2, num_images=4)
CONFIG = RecoveryConfig(steps=6, batch_size=4, learning_rate=3e-3, checkpoint_every=2, log_every=1)
APART = ProgressiveConfig(stages=2, decay_stages=2, stage_steps=2)  # units are removed before step 6
LONGER = replace(CONFIG, steps=9)
INNER = "down_blocks.0.resnets.0.inner"
WIDTH, DEPTH, BOTH = (CutConfig(granularity=name, round_to=2) for name in ("width", "depth", "both"))


def calibration(model):
    batch = images().batch([0, 1, 2, 3])
    return replace(batch, conditions=accepts(model)(batch.conditions))


def pruner_for(model, process, target="macs=60%", criterion="random", cut=WIDTH, config=QUICK, scores=None):
    """The pruner that `compress` would use for `model`; `scores` replace those of the criterion."""
    structure, batch, scoring = describe(model), calibration(model), config.scoring(SCORING)
    ranking = scores or score(model, process, batch, structure, criterion, SCORING).scores
    inputs = example_inputs(model, 1)
    goal = one_shot(model, structure, parse_target(target), ranking, cut, inputs)[0].cut
    scorer = stage_scorer(process, batch, criterion, scoring)
    return Progressive(
        config,
        goal,
        scorer if scores is None else lambda model: Scored(ranking),
        cost_model(model, structure, inputs),
        {"criterion": criterion, "scoring": asdict(scoring)},
        {"criterion": criterion},
        "dense",
    )


def decisions(pruner, model):
    """The decisions of every stage for a model that does not change; their memory is converted to JSON and back."""
    structure, pruning, found = describe(model), {}, []
    for step in range(pruner.config.pruning_steps + 1):
        if pruner.due(step):
            masks = {name: torch.tensor(values) for name, values in pruning.get("masks", {}).items()}
            with masked(model, structure, masks):
                found.append(pruner.decide(model, model, pruning, step))
            pruning = json.loads(json.dumps({**found[-1].pruning, "masks": found[-1].masks}))
    return found


def toss(structure, seed=0):
    """A scorer that draws new scores at every call, and its calls."""
    generator, calls = torch.Generator().manual_seed(seed), []

    def scorer(model):
        calls.append(model)
        shapes = {name: values.shape for name, values in no_scores(structure).items()}
        return Scored({name: torch.rand(shape, generator=generator).double() for name, shape in shapes.items()})

    return scorer, calls


def apart(**changes):
    return pruner_for(dit(), FlowProcess(), "macs=45%", "taylor", BOTH, replace(APART, **changes))


def run(folder, data=None, config=LONGER, pruner=None, teacher=None, build=dit, process=None):
    """A progressive run that removes widths and blocks; returns the model and its average."""
    model = build()
    average = recover(model, process or FlowProcess(), data or images(), config, folder, teacher, pruner or apart())
    return model, average
