"""Uniform stride, such as every other block: a baseline that few similarity scores beat on transformers."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from torch import nn

from ..data import Batch
from ..process.base import Process
from ..structure import Structure
from .blocks.measure import block_names, block_scores
from .criterion import Criterion, Options, ScoringConfig, free
from .ranking import Ranking


def uniform(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig, options: Options
) -> Ranking:
    """The position of each block in `stride_order` as its score.

    Raises:
        SecateurError: the model has no blocks.
    """
    names = block_names(structure)
    return Ranking(block_scores(names, stride_scores(len(names))))


def stride_scores(count: int) -> np.ndarray:
    """The place of each of `count` blocks in `stride_order`, (L,) float64."""
    return np.argsort(stride_order(count)).astype(np.float64)


def stride_order(count: int) -> list[int]:
    """Indices of `count` blocks in an order every prefix of which is spread over the whole depth.

    Halving gives nested sets of every 2nd, 4th, 8th ... block; up to count / 2 no two neighbours are removed. Between
    two of these sets, the next block is the one that keeps the removed ones most even.
    """
    levels = [list(range(count))]
    while len(levels[-1]) > 1:
        level = levels[-1]
        # Of an odd number of blocks every second is in the middle; of an even one either half can be.
        halves = [level[1::2]] if len(level) % 2 else [level[1::2], level[::2]]
        levels.append(min(halves, key=lambda half: unevenness(half, count)))
    order: list[int] = []
    for level in reversed(levels):
        waiting = [index for index in level if index not in order]
        while waiting:
            best = min(waiting, key=lambda index: unevenness([*order, index], count))
            waiting.remove(best)
            order.append(best)
    return order


def unevenness(removed: Collection[int], count: int) -> float:
    """Mean squared distance of the number removed among the first k blocks from its share, k len(removed) / count."""
    gone = np.isin(np.arange(count), list(removed)).cumsum()
    return float(np.square(gone - len(removed) * np.arange(1, count + 1) / count).mean())


UNIFORM = Criterion("uniform", Options, uniform, free, ranks="blocks", needs_data=False)
