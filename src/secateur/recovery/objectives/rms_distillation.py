"""Distillation by the unsquared error of every sample, so that some timesteps do not outweigh all others; ours.

The gradient of a squared error grows with the error. Where a network predicts noise, a student's errors at little noise
are many times those at much noise, which decide what a sample shows (docs/benchmarks/objectives.md).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ...models.jacobian import exact
from .distillation import distillation_terms
from .objective import MATCHED, Objective

FLOOR = 1e-12  # added under the root, which has no gradient at 0


def root_mean_square(prediction: Tensor, taught: Tensor) -> Tensor:
    """The root of the mean squared difference of each sample (B, ...), averaged over the batch: a scalar."""
    difference = (exact(prediction) - exact(taught)).flatten(1)
    return ((difference.square().mean(1) + FLOOR).sqrt() - FLOOR**0.5).mean()


RMS_DISTILLATION = Objective(
    "rms-distillation",
    partial(distillation_terms, error=root_mean_square),
    MATCHED,
    needs_teacher=True,
    denoising_optional=True,
    compiles=True,
)
