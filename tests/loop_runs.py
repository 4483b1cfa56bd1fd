"""`Pruning` of tiny models in loops of a test's own."""

import torch
from diffusers import DDPMScheduler

import secateur
from secateur.criteria import ScoringConfig
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.schedules import CutConfig, ProgressiveConfig
from secateur.structure.cost import cost_model
from training_runs import images

SCORING = ScoringConfig(num_timesteps=2, num_images=4)
QUICK = ProgressiveConfig(stages=2, decay_stages=2, stage_steps=1)  # units are removed at the fourth call
DATA = images().images[:4] * 2 - 1
LABELLED = [{"images": DATA, "labels": torch.arange(4)}]


def pruning_of(model, optimizer=None, ema=None, steps=6, **changes):
    options = {"target": "macs=60%", "schedule": QUICK, "cut": CutConfig(round_to=2), "scoring": SCORING}
    options |= {"data": DATA, "process": DDPMScheduler()}
    return secateur.Pruning(model, optimizer=optimizer, ema=ema, steps=steps, **options | changes)


def macs(model):
    return cost_model(model, describe(model), example_inputs(model, 1))({}).macs
