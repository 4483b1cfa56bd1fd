"""What a criterion that drops blocks found beside its scores, for `ranking.json`, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Direction = Literal["noise", "collapse", "neither"]


@dataclass(frozen=True)
class BlockEffect:
    """What dropping one block does to the output; tuples have one entry per timestep bin.

    Attributes:
        rank: 1 leaves first.
        rank_low, rank_high: the middle 90 % of the ranks over resamples of the images.
        ced_stratified, ced_pooled: |change of log standard deviation|, mean over bins, or over all bins at once.
        deviation: geometric mean over tuples of the root mean square of prediction without the block -
            prediction.
        direction: whether the spread of the output grows (noise), shrinks (collapse), or does neither consistently.
        output_error: E|prediction without the block - prediction|^2 / E|prediction|^2.
        loss_change: denoising loss without the block minus that of the full model.
        cosine: 1 - cos(input, output) of the block, mean over tokens.
        signed, output_errors, loss_changes: change of log standard deviation, output error and loss change by bin.
    """

    rank: int
    rank_low: int
    rank_high: int
    ced_stratified: float
    ced_pooled: float
    deviation: float
    direction: Direction
    output_error: float
    loss_change: float
    cosine: float
    signed: tuple[float, ...]
    output_errors: tuple[float, ...]
    loss_changes: tuple[float, ...]


@dataclass(frozen=True)
class BlockReport:
    """What dropping each block does, all on the same inputs.

    Attributes:
        images: how many images, each once in every bin.
        timesteps: the middle of each timestep bin in the network's unit, from the clean end.
        blocks: by name, in the order of the forward pass.
        correlations: Spearman's rank correlation of the scores with other ones; None where one of them is constant.
    """

    images: int
    timesteps: tuple[float, ...]
    blocks: Mapping[str, BlockEffect]
    correlations: Mapping[str, float | None]
