"""The report of a criterion that drops blocks: the effect of each drop, the uncertainty of its rank, and other scores.

L blocks, T bins of timesteps, N images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ...process.base import Process
from ...results import BlockEffect, BlockReport
from ...results.ranking import Direction
from ..criterion import ScoringConfig
from ..ranking import Ranking
from ..uniform import stride_scores
from .entropy import deviations, entropy_changes, log_sd_changes
from .measure import Array, BlockSums, block_scores, removal_order

RESAMPLES = 1000
INTERVAL = (0.05, 0.95)
CONSISTENT = 0.5  # share of the mean |shift| that the mean shift must reach to have a direction


def described(
    model: nn.Module,
    process: Process,
    sums: BlockSums,
    config: ScoringConfig,
    criterion: str,
    scores_of: Callable[[BlockSums], Array],
) -> Ranking:
    """The scores (L,) that `scores_of` computes from the sums, and the report; of equal scores, the smaller error is
    removed first."""
    scores, changes = scores_of(sums), sums.change.sum((1, 2))
    signed, pooled = log_sd_changes(sums.total, sums.square, sums.entries)
    ranks = removal_order(scores, changes).argsort() + 1
    low, high = rank_intervals(sums, config.seed, scores_of)
    errors, losses, distances = sums.output_error(), sums.loss_change(), deviations(sums)
    blocks = {
        name: BlockEffect(
            rank=int(ranks[i]),
            rank_low=int(low[i]),
            rank_high=int(high[i]),
            ced_stratified=float(np.abs(signed[i]).mean()),
            ced_pooled=float(np.abs(pooled[i])),
            deviation=float(distances[i]),
            direction=direction(signed[i]),
            output_error=float(changes[i] / max(sums.size.sum(), np.finfo(np.float64).tiny)),
            loss_change=float(losses[i].mean()),
            cosine=float(sums.cosine[i].mean()),
            signed=tuple(signed[i].tolist()),
            output_errors=tuple(errors[i].tolist()),
            loss_changes=tuple(losses[i].tolist()),
        )
        for i, name in enumerate(sums.names)
    }
    others = {
        "ced": entropy_changes(sums),
        "deviation": distances,
        "output error": np.array([effect.output_error for effect in blocks.values()]),
        "loss change": np.array([effect.loss_change for effect in blocks.values()]),
        "cosine": np.array([effect.cosine for effect in blocks.values()]),
        "magnitude": np.array([_magnitude(model.get_submodule(name)) for name in sums.names]),
        "uniform": stride_scores(len(sums.names)),
    }
    bins = config.timesteps_of(process)
    middles = process.timesteps((torch.arange(bins, dtype=torch.float64) + 0.5) / bins)
    report = BlockReport(
        images=sums.change.shape[-1],
        timesteps=tuple(map(float, middles.tolist())),
        blocks=blocks,
        correlations={name: spearman(scores, values) for name, values in others.items() if name != criterion},
    )
    return Ranking(block_scores(sums.names, scores, changes), report=report)


def direction(signed: Array) -> Direction:
    """The common direction of the bins' shifts (T,), unless they cancel to less than half of their size."""
    mean, size = signed.mean(), np.abs(signed).mean()
    if abs(mean) <= CONSISTENT * size:
        return "neither"
    return "noise" if mean > 0 else "collapse"


def rank_intervals(sums: BlockSums, seed: int, scores_of: Callable[[BlockSums], Array]) -> tuple[Array, Array]:
    """Bounds of the middle 90 % of every block's rank (L,) over `RESAMPLES` bootstrap resamples of the images.

    An image is drawn with all of its bins, since its tuples are not independent. With one image, ranks may be any.
    """
    images, blocks = sums.change.shape[-1], len(sums.names)
    if images == 1:
        return np.full(blocks, 1), np.full(blocks, blocks)
    generator = np.random.default_rng(seed)
    ranks = []
    for _ in range(RESAMPLES):
        resample = sums.of_images(generator.integers(images, size=(images,)))
        ranks.append(removal_order(scores_of(resample), resample.change.sum((1, 2))).argsort() + 1)
    low, high = np.quantile(ranks, INTERVAL, axis=0, method="nearest")
    return low, high


def spearman(first: Array, second: Array) -> float | None:
    """Correlation of the ranks, equal values sharing their mean rank; None if one side is constant."""
    from scipy.stats import spearmanr  # takes a second to import

    return None if np.ptp(first) == 0 or np.ptp(second) == 0 else float(spearmanr(first, second).statistic)


def _magnitude(block: nn.Module) -> float:
    """As the criterion `magnitude`, without its scores of widths."""
    return sum(parameter.detach().abs().cpu().double().sum().item() for parameter in block.parameters())
