"""Gradient flow of two tiny networks in float64: settings, batches, signed scores."""

import pytest
import torch

from models import dit, unet
from secateur.criteria import GradientFlowOptions, ScoringConfig
from secateur.criteria.gradient_flow import (
    gradient_flow_statistics,
    gradient_norm_changes,
)
from secateur.data import Batch
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess

METHODS = ["exact", "finite-difference"]
UNIFORM = GradientFlowOptions(timestep_weights="uniform")
THREE = ScoringConfig(num_timesteps=3, batch_size=4, options=UNIFORM)
BOTH = [
    (
        unet(sample_size=4, block_out_channels=(2, 4), norm_num_groups=2, attention_head_dim=2).double(),
        DiffusionProcess(),
    ),
    (
        dit(sample_size=4, num_layers=2, num_attention_heads=2, attention_head_dim=2, num_embeds_ada_norm=4).double(),
        FlowProcess(),
    ),
]
over_both = pytest.mark.parametrize(("model", "process"), BOTH, ids=["unet", "dit"])


def batch_of(model, count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size, channels = model.config.sample_size, model.config.in_channels
    sample = torch.randn(count, channels, size, size, generator=generator, dtype=torch.float64)
    return Batch(sample, {"class_labels": torch.arange(count)} if "num_embeds_ada_norm" in model.config else {})


def signed_scores(model, process, config=THREE):
    """S of every unit and block."""
    statistics = gradient_flow_statistics(model, process, batch_of(model), config, config.options)
    return gradient_norm_changes(model, describe(model), statistics.product)


def assert_same(found, expected, rtol=1e-9, atol=1e-12):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            found[name], values, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
