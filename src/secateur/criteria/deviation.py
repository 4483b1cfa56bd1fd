"""Entropy of the deviation: how far the prediction moves when a block is dropped. In this form not published.

EntPruner (Li et al. 2025) compares the entropies of two outputs, with a block and without it (see `ced`), which cannot
see damage that keeps the spread. Here the prediction without block i is taken as a Gaussian around the full model's,
with one variance for each (image, label, timestep, noise): the score is exp of its entropy per entry but for a
constant, that is, the geometric mean over tuples of the root mean square of prediction without i - prediction. An
identity scores 0 (float32's rounding), scaling by a |1 - 1 / a| of the prediction's size.

One denoiser written as a prediction of noise, of velocity or of the sample has the same order of blocks, since each
turns into the other by a factor that a tuple's deviation shares for every block. A mean of squares would be that of the
timesteps where deviations are largest, and those depend on what is predicted; recent depth pruning of diffusion
transformers takes that mean with a weight for each timestep. The other side: a block that does nothing at some
timesteps scores low even if it matters at others.
"""

from __future__ import annotations

from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .blocks.effects import described
from .blocks.entropy import deviations
from .blocks.measure import BINS, measure_blocks, price_of_drops
from .criterion import Criterion, Options, ScoringConfig
from .ranking import Ranking


def deviation(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: Options
) -> Ranking:
    """Scores from the tuples and passes of `ced`, with its report. Give the weights that sample.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    sums = measure_blocks(model, process, batch, structure, config)
    return described(model, process, sums, config, "deviation", deviations)


DEVIATION = Criterion("deviation", Options, deviation, price_of_drops, ranks="blocks", timesteps=BINS)
