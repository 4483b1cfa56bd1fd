"""Random scores: the baseline that every ranking must beat."""

import torch
from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .criterion import Criterion, Options, ScoringConfig, free
from .ranking import Ranking


def random(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: Options
) -> Ranking:
    """Uniform scores drawn from `config.seed`."""
    generator = torch.Generator().manual_seed(config.seed)
    sizes = {name: dim.size for name, dim in structure.dims.items()} | dict.fromkeys(structure.blocks, 1)
    return Ranking({name: torch.rand(size, generator=generator).double() for name, size in sizes.items()})


RANDOM = Criterion("random", Options, random, free, needs_data=False)
