"""The signed score of Ent-Prog, of EntPruner's authors (CVPR 2026): how the spread of the prediction changes.

pi(b) = log(sigma of the prediction without block b / sigma of the prediction), over all timesteps at once. That is
`ced` of the prediction, pooled, without the absolute value: blocks whose removal makes the outputs collapse are removed
first, those whose removal makes them drift to noise last.
"""

from __future__ import annotations

from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .blocks.effects import described
from .blocks.entropy import log_sd_changes
from .blocks.measure import BINS, Array, BlockSums, measure_blocks, price_of_drops
from .criterion import Criterion, Options, ScoringConfig
from .ranking import Ranking


def ent_prog(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: Options
) -> Ranking:
    """Scores from the tuples and passes of `ced`, with its report. Use the weights for sampling.

    The source draws about 1000 tuples, which is 128 images in 8 bins.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    sums = measure_blocks(model, process, batch, structure, config, ced_output="prediction")
    return described(model, process, sums, config, "ent-prog", pooled_changes)


def pooled_changes(sums: BlockSums) -> Array:
    """log sd(without block i) - log sd(full) over all timesteps at once, (L,)."""
    return log_sd_changes(sums.total, sums.square, sums.entries)[1]


ENT_PROG = Criterion("ent-prog", Options, ent_prog, price_of_drops, ranks="blocks", timesteps=BINS)
