"""Loss change: how much the denoising loss rises without a block."""

from __future__ import annotations

from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .blocks.measure import BINS, block_scores, measure_blocks, price_of_drops
from .criterion import Criterion, Options, ScoringConfig
from .ranking import Ranking


def loss_change(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: Options
) -> Ranking:
    """Denoising loss without a block minus that of the full model, on the tuples of `ced`; negative if removal helps.

    The "sensitivity" that TinyFusion compares with (Fang et al. 2025, arXiv 2412.01199).

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    sums = measure_blocks(model, process, batch, structure, config, ced_output="prediction")
    return Ranking(block_scores(sums.names, sums.loss_change().mean(-1), sums.output_error().mean(-1)))


LOSS_CHANGE = Criterion("loss-change", Options, loss_change, price_of_drops, ranks="blocks", timesteps=BINS)
