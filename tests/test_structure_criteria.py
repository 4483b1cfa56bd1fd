"""Every criterion ranks, and the Jacobian term differentiates, every architecture that predicts from text."""

from functools import partial

import pytest
import torch

from models import flux, pixart, sample_for, sana, sd3, unet_condition
from secateur.criteria import CRITERIA, ScoringConfig, score
from secateur.data import Batch
from secateur.models.jacobian import higher_order, project, unit_directions
from secateur.models.registry import describe
from secateur.process.from_config import process_from_config

DDPM = process_from_config({"_class_name": "DDPMScheduler", "beta_schedule": "linear"})
FLOW = process_from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"})
MODELS = {
    "unet_condition": (unet_condition, DDPM),
    "pixart": (pixart, DDPM),
    "sd3": (sd3, FLOW),
    "flux": (partial(flux, guidance_embeds=True), FLOW),
    "sana": (sana, FLOW),
}
CONFIG = ScoringConfig(num_timesteps=2, num_images=2, batch_size=2)


def batch_for(model):
    return Batch(*sample_for(model))


@pytest.mark.slow
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("make", "process"), MODELS.values(), ids=MODELS)
def test_every_criterion_ranks_every_unit_and_block(make, process, criterion):
    model = make()
    structure = describe(model)
    scores = score(model, process, batch_for(model), structure, criterion, CONFIG).scores
    sizes = {} if CRITERIA[criterion].ranks == "blocks" else {name: dim.size for name, dim in structure.dims.items()}
    assert {name: len(values) for name, values in scores.items()} == sizes | dict.fromkeys(structure.blocks, 1)
    assert all(values.isfinite().all() for values in scores.values())
    assert len({round(value, 12) for values in scores.values() for value in values.tolist()}) > 1


@pytest.mark.parametrize(("make", "process"), MODELS.values(), ids=MODELS)
def test_the_jacobian_term_has_gradients(make, process):
    model = make()
    batch = batch_for(model)
    directions = unit_directions([torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(0))])
    timesteps = process.timesteps(torch.tensor([0.2, 0.7]))
    with higher_order("vjp"):
        _, products = project(model, batch.sample, timesteps, batch.conditions, directions)
        products[0].square().sum().backward()
    head = model.conv_out if hasattr(model, "conv_out") else model.proj_out
    assert head.weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize(("make", "process"), MODELS.values(), ids=MODELS)
def test_the_memory_of_gradients_is_counted_without_running_the_model(make, process):
    model, criterion = make(), CRITERIA["taylor"]
    counted = criterion.memory(model, process, CONFIG, criterion.options())
    assert counted.peak > counted.sums + sum(parameter.nbytes for parameter in model.parameters())
