"""Entropy of the deviation: how much a block adds to what the rest of the model would predict.

EntPruner (Li et al. 2025) compares the entropies of two outputs, with a block and without it (see `ced`), which cannot
see damage that keeps the spread. This is the conditional entropy of one given the other: the score of block i is
exp H(out without i | out) but for a constant, that is, the geometric mean over (image, label, timestep, noise) of the
root mean square of out without i - out. An identity scores 0; scaling by a scores |1 - 1 / a| of the output's size.

A network that predicts noise, velocity or the clean sample ranks its blocks alike, since turning one into another
multiplies a tuple's deviation by the same factor for every block. A mean of squares would hear the timesteps at which
outputs are largest, and no others. Ours, not a published criterion: docs/benchmarks.md says why the recipe has it.
"""

from __future__ import annotations

from torch import nn

from ..data import Batch
from ..process import Process
from ..structure import Structure
from .block_effects import described
from .blocks import measure_blocks
from .config import ScoringConfig
from .entropy import deviations
from .ranking import Ranking


def deviation(model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig) -> Ranking:
    """Scores from the tuples and passes of `ced`, with its report. Give the weights that sample.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    sums = measure_blocks(model, process, batch, structure, config)
    return described(model, process, sums, config, "deviation", deviations)
