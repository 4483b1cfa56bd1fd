"""Entropy of the deviation: how far the prediction moves when a block is dropped. Not published in this form.

EntPruner (Li et al. 2025) compares the entropies of two outputs, with a block and without it (see `ced`), which does
not detect damage that preserves the spread. Here the prediction without block i is modelled as a Gaussian around the
full model's prediction, with one variance for each (image, label, timestep, noise). The score is exp of its entropy per
entry up to a constant, that is, the geometric mean over tuples of the root mean square of (prediction without i -
prediction). An identity block scores 0 (up to float32 rounding); a block that scales the prediction by a scores |1 - 1
/ a| of the prediction's size.

The order of blocks is the same whether a denoiser predicts noise, velocity or the sample, since these differ by a
factor that is the same for every block. A mean of squares would be dominated by the timesteps with the largest
deviations, which depend on what is predicted; recent depth pruning of diffusion transformers uses that mean with a
weight for each timestep. The drawback of the geometric mean: a block that does nothing at some timesteps scores low
even if it matters at others.
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
    """Scores from the tuples and passes of `ced`, with its report. Use the weights for sampling.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    sums = measure_blocks(model, process, batch, structure, config)
    return described(model, process, sums, config, "deviation", deviations)


DEVIATION = Criterion("deviation", Options, deviation, price_of_drops, ranks="blocks", timesteps=BINS)
