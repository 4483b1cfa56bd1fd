"""Gaussian entropies of a model's outputs without each of its blocks, from the sums of `measure`.

L blocks, T bins of timesteps, N images.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from .measure import Array, BlockSums

CedPooling = Literal["stratified", "pooled"]

ROUNDING = float(np.finfo(np.float32).eps)  # of the prediction; a smaller difference counts as zero


def log_sd_changes(total: Array, square: Array, entries: int) -> tuple[Array, Array]:
    """log sd(without block i) - log sd(full), sd over all entries of a bin's outputs, or of all outputs.

    Positive if the output drifts towards noise, negative if it collapses.

    Args:
        total: sum of each tuple's output (..., L + 1, T, N), the full model first.
        square: sums of its squares, likewise.
        entries: entries of one output.

    Returns:
        By bin (..., L, T), and over all bins (..., L).
    """
    images, bins = total.shape[-1], total.shape[-2]
    by_bin = _log_sd(total.sum(-1), square.sum(-1), entries * images)
    pooled = _log_sd(total.sum((-2, -1)), square.sum((-2, -1)), entries * images * bins)
    return by_bin[..., 1:, :] - by_bin[..., :1, :], pooled[..., 1:] - pooled[..., :1]


def entropy_changes(sums: BlockSums, pooling: CedPooling = "stratified") -> Array:
    """|H(out without block i) - H(out)| (L,): the mean over bins, or of all outputs at once."""
    signed, pooled = log_sd_changes(sums.total, sums.square, sums.entries)
    return np.abs(signed).mean(-1) if pooling == "stratified" else np.abs(pooled)


def deviations(sums: BlockSums) -> Array:
    """Geometric mean over tuples of the root mean square of (prediction without block i - prediction), (L,).

    Up to a constant factor, this is exp of the entropy per entry of the prediction without the block, modelled as a
    Gaussian around the full model's prediction with one variance for each tuple.
    """
    squares = np.maximum(sums.change, ROUNDING**2 * sums.size)
    variance = np.maximum(squares / sums.entries, np.finfo(np.float64).tiny)
    return np.exp(0.5 * np.log(variance).mean((1, 2)))


def _log_sd(total: Array, square: Array, count: int) -> Array:
    variance = square / count - np.square(total / count)
    return 0.5 * np.log(np.maximum(variance, np.finfo(np.float64).tiny))
