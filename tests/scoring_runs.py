"""Networks with their processes, batches and short settings for criteria."""

import torch

from models import dit, unet
from secateur.criteria import (
    ScoringConfig,
)
from secateur.data import Batch
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess

FEW = ScoringConfig(num_timesteps=8, batch_size=16)
BOTH = [(unet(), DiffusionProcess()), (dit(), FlowProcess())]


def batch_of(model, count=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    size, channels = model.config.sample_size, model.config.in_channels
    sample = torch.randn(count, channels, size, size, generator=generator).to(dtype)
    labels = {"class_labels": torch.arange(count)} if "num_embeds_ada_norm" in model.config else {}
    return Batch(sample, labels)
