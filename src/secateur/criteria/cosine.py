"""Cosine distance of a block's input and output: blocks that change the residual stream's direction least are removed
first."""

from __future__ import annotations

import torch
from torch import nn

from ..data import Batch
from ..models.network import inference
from ..models.predict import predict
from ..process.base import Process
from ..structure import Structure
from .blocks.measure import BINS, block_names, block_scores, draw_tuples, price_of_tuples, watched
from .criterion import Criterion, Options, ScoringConfig
from .ranking import Ranking


def cosine(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: Options
) -> Ranking:
    """Block influence, 1 - E cos(x, block(x)) over tokens (ShortGPT, Men et al. 2024, arXiv 2403.03853, eq. 1).

    The expectation is over the tuples of `ced`, in one pass of the full model.

    Raises:
        SecateurError: the model has no blocks.
    """
    names = block_names(structure)
    distances = []
    with inference(model), watched(model, structure) as seen:
        for tuples in draw_tuples(process, batch, config):
            predict(model, tuples.noisy, tuples.timesteps, tuples.conditions)
            distances.append(torch.stack([seen[name] for name in names]))
    return Ranking(block_scores(names, torch.cat(distances, dim=1).mean(1).numpy()))


COSINE = Criterion("cosine", Options, cosine, price_of_tuples, ranks="blocks", timesteps=BINS)
