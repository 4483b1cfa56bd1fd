"""Conditional Entropy Deviation of every block, after EntPruner (Li et al. 2025, arXiv 2511.21122). A reconstruction.

From the paper and its reviews: a block's score is how far the output distribution moves from the learned conditional
one when the block is dropped, on the target data; CED_i = |H(out) - H(out without block i)| with a Gaussian entropy,
that is, a difference of log standard deviations; the lowest scores are removed first.

Chosen here: the same tuples for every block. The output is the clean sample implied by the network's prediction
(`output` sample), since a model learns a distribution of samples: most of the variance of a velocity or noise
prediction is that of the input noise, which a dropped block does not change (`prediction` uses the prediction itself).
The clean sample is clipped to the range of the calibration images, as in samplers, since near pure noise the
prediction's error is divided by almost no signal, and a few tuples would dominate the score. The score is the mean over
8 timestep bins of |CED| within each (`stratified`); the paper pools them (`pooled`: opposite shifts cancel). There is
one variance over samples and entries of the output. Of equal scores the smaller output error, then the later block is
removed first. `prediction` and `pooled` together are closest to the paper.

A standard deviation cannot detect damage that preserves it. So the report has, from the same passes, the output error,
the change of the denoising loss, the uncertainty of the ranks, and the agreement with other scores; and the criterion
`deviation` does detect it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .blocks.effects import described
from .blocks.entropy import CedPooling, entropy_changes
from .blocks.measure import BINS, CedOutput, measure_blocks, price_of_drops
from .criterion import Criterion, Options, ScoringConfig
from .ranking import Ranking


@dataclass(frozen=True)
class CedOptions(Options):
    """Options of ced.

    Attributes:
        pooling: average the shifts of the timestep bins (stratified), or take one shift over all (pooled).
        output: measure the spread of the clean sample implied by the prediction (sample), or of the prediction itself
            (prediction), which deviation always uses.
    """

    pooling: CedPooling = "stratified"
    output: CedOutput = "sample"


def ced(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: CedOptions
) -> Ranking:
    """Scores from one set of tuples, and the report. Use the weights for sampling: the EMA weights, if there are any.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    sums = measure_blocks(model, process, batch, structure, config, options.output)
    scores_of = partial(entropy_changes, pooling=options.pooling)
    return described(model, process, sums, config, "ced", scores_of)


CED = Criterion("ced", CedOptions, ced, price_of_drops, ranks="blocks", timesteps=BINS)
