"""Conditional Entropy Deviation of every block, after EntPruner (Li et al. 2025, arXiv 2511.21122). A reconstruction.

From the paper and its reviews: a block's score is how far the output distribution moves from the learned conditional
one when the block is dropped, on the target data; CED_i = |H(out) - H(out without block i)| with a Gaussian entropy,
that is, a difference of log standard deviations; the lowest leave first.

Chosen here: the same tuples for every block; the output is the clean sample that the network's prediction stands for
(`output` sample), since the distribution that a model has learned is one of samples: most of a velocity's variance,
and of a noise's, is that of the noise it was given, which a dropped block does not touch (`prediction` takes it as it
is); the clean sample ends where the calibration images end, as in samplers, since near pure noise the prediction's
error is divided by almost no signal, and a few tuples would make the score; the mean over 8 timestep bins of |CED|
within each (`stratified`), where the paper pools them (`pooled`: opposite shifts cancel); one variance over samples and
entries of the output; of equal scores the smaller output error, then the later block leaves first. `prediction` and
`pooled` together are the closest to the paper.

A standard deviation cannot see damage that keeps it. So the report has, from the same passes, the output error, the
change of the denoising loss, how sure the ranks are, and whether other scores give the same order; and `deviation` is
a criterion that does see it.
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
        output: take the spread of the clean sample that the network predicts (sample), or of its prediction as it is
            (prediction), which is what deviation always looks at.
    """

    pooling: CedPooling = "stratified"
    output: CedOutput = "sample"


def ced(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: CedOptions
) -> Ranking:
    """Scores from one set of tuples, and the report. Give the weights that sample: the EMA ones, if there are any.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    sums = measure_blocks(model, process, batch, structure, config, options.output)
    scores_of = partial(entropy_changes, pooling=options.pooling)
    return described(model, process, sums, config, "ced", scores_of)


CED = Criterion("ced", CedOptions, ced, price_of_drops, ranks="blocks", timesteps=BINS)
