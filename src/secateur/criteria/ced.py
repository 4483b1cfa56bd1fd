"""Conditional Entropy Deviation of every block, after EntPruner (Li et al. 2025, arXiv 2511.21122). A reconstruction.

From the paper and its reviews: a block's score is how far the output distribution moves from the learned conditional
one when the block is dropped, on the target data; CED_i = |H(out) - H(out without block i)| with a Gaussian entropy,
that is, a difference of log standard deviations; the lowest leave first.

Chosen here: the same tuples for every block; the output is the clean sample that the network's prediction stands for
(`ced_output` sample), since the distribution that a model has learned is one of samples: most of a velocity's variance,
and of a noise's, is that of the noise it was given, which a dropped block does not touch (`prediction` takes it as it
is); the clean sample ends where the calibration images end, as in samplers, since near pure noise the prediction's
error is divided by almost no signal, and a few tuples would make the score; the mean over 8 timestep bins of |CED|
within each (`stratified`), where the paper pools them (`pooled`: opposite shifts cancel); one variance over samples and
entries of the output; of equal scores the smaller output error, then the later block leaves first. `prediction` and
`pooled` together are the closest to the paper.

A standard deviation cannot see damage that keeps it. So the report has, from the same passes, the output error, the
change of the denoising loss, how sure the ranks are, and whether simpler scores give the same order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from ..data import Batch
from ..process import Process
from ..structure import Structure
from .block_report import BlockEffect, BlockReport, Direction
from .blocks import Array, BlockSums, bins_of, block_scores, leaving_order, measure_blocks
from .config import CedPooling, ScoringConfig
from .ranking import Ranking, reduce_elements
from .uniform import stride_scores

RESAMPLES = 1000
INTERVAL = (0.05, 0.95)
CONSISTENT = 0.5  # share of the mean |shift| that the mean shift must reach to have a direction


def ced(model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig) -> Ranking:
    """Scores from one set of tuples, and the report. Give the weights that sample: the EMA ones, if there are any.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    sums = measure_blocks(model, process, batch, structure, config)
    signed, pooled = log_deviations(sums.total, sums.square, sums.entries)
    scores = pool(signed, pooled, config.ced_pooling)
    changes, errors = sums.change.sum((1, 2)), sums.output_error()
    ranks = leaving_order(scores, changes).argsort() + 1
    low, high = rank_intervals(sums, config)
    blocks = {
        name: BlockEffect(
            rank=int(ranks[i]),
            rank_low=int(low[i]),
            rank_high=int(high[i]),
            ced_stratified=float(np.abs(signed[i]).mean()),
            ced_pooled=float(np.abs(pooled[i])),
            direction=direction(signed[i]),
            output_error=float(changes[i] / max(sums.size.sum(), np.finfo(np.float64).tiny)),
            loss_change=float(sums.loss_change()[i].mean()),
            cosine=float(sums.cosine[i].mean()),
            signed=tuple(signed[i].tolist()),
            output_errors=tuple(errors[i].tolist()),
            loss_changes=tuple(sums.loss_change()[i].tolist()),
        )
        for i, name in enumerate(sums.names)
    }
    others = {
        "output error": np.array([effect.output_error for effect in blocks.values()]),
        "loss change": np.array([effect.loss_change for effect in blocks.values()]),
        "cosine": np.array([effect.cosine for effect in blocks.values()]),
        "magnitude": np.array([_magnitude(model.get_submodule(name), config) for name in sums.names]),
        "uniform": stride_scores(len(sums.names)),
    }
    bins = bins_of(process, config)
    middles = process.timesteps((torch.arange(bins, dtype=torch.float64) + 0.5) / bins)
    report = BlockReport(
        images=len(batch.sample),
        timesteps=tuple(map(float, middles.tolist())),
        blocks=blocks,
        correlations={name: spearman(scores, values) for name, values in others.items()},
    )
    return Ranking(block_scores(sums.names, scores, changes), report=report)


def log_deviations(total: Array, square: Array, entries: int) -> tuple[Array, Array]:
    """log sd(without block i) - log sd(full), sd over all entries of a bin's outputs, or of all outputs.

    Positive where the output drifts to noise, negative where it collapses.

    Args:
        total: sums over each tuple's output (..., L + 1, T, N), the full model first.
        square: sums of its squares, likewise.
        entries: entries of one output.

    Returns:
        By bin (..., L, T), and over all bins (..., L).
    """
    images, bins = total.shape[-1], total.shape[-2]
    by_bin = _log_sd(total.sum(-1), square.sum(-1), entries * images)
    pooled = _log_sd(total.sum((-2, -1)), square.sum((-2, -1)), entries * images * bins)
    return by_bin[..., 1:, :] - by_bin[..., :1, :], pooled[..., 1:] - pooled[..., :1]


def pool(signed: Array, pooled: Array, pooling: CedPooling) -> Array:
    """CED (..., L) from what `log_deviations` returns."""
    return np.abs(signed).mean(-1) if pooling == "stratified" else np.abs(pooled)


def direction(signed: Array) -> Direction:
    """Where the bins' shifts (T,) point, unless they cancel to less than half of their size."""
    mean, size = signed.mean(), np.abs(signed).mean()
    if abs(mean) <= CONSISTENT * size:
        return "neither"
    return "noise" if mean > 0 else "collapse"


def rank_intervals(sums: BlockSums, config: ScoringConfig) -> tuple[Array, Array]:
    """Bounds of the middle 90 % of every block's rank (L,) over `RESAMPLES` bootstrap resamples of the images.

    An image is drawn with all of its bins, since its tuples are not independent. One image tells nothing of others, so
    its ranks may be any.
    """
    images, blocks = sums.total.shape[-1], len(sums.names)
    if images == 1:
        return np.full(blocks, 1), np.full(blocks, blocks)
    generator = np.random.default_rng(config.seed)
    ranks = []
    for _ in range(RESAMPLES):
        drawn = generator.integers(images, size=images)
        signed, pooled = log_deviations(sums.total[..., drawn], sums.square[..., drawn], sums.entries)
        scores = pool(signed, pooled, config.ced_pooling)
        ranks.append(leaving_order(scores, sums.change[..., drawn].sum((1, 2))).argsort() + 1)
    low, high = np.quantile(ranks, INTERVAL, axis=0, method="nearest")
    return low, high


def spearman(first: Array, second: Array) -> float | None:
    """Correlation of the ranks, equal values sharing their mean rank; None where one side is constant."""
    ranks = [((x[:, None] > x).sum(1) + (x[:, None] >= x).sum(1)) / 2 for x in (first, second)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _log_sd(total: Array, square: Array, count: int) -> Array:
    variance = square / count - np.square(total / count)
    return 0.5 * np.log(np.maximum(variance, np.finfo(np.float64).tiny))


def _magnitude(block: nn.Module, config: ScoringConfig) -> float:
    """As the criterion `magnitude`, without its scores of widths."""
    reduced = [reduce_elements(parameter.detach(), config.element_reduction) for parameter in block.parameters()]
    return sum(values.cpu().double().sum().item() for values in reduced)
