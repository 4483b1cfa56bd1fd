"""Uncertainty of measurements: bootstrap intervals, and whether two models differ.

Models of one evaluation use the same seeds and the same real images, so resample k draws the same images for all of
them, and common variation cancels in a difference (a paired bootstrap, Efron & Tibshirani 1993, chapter 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..base.errors import SecateurError
from ..results.evaluation import Comparison
from ..results.measured import Better, Estimate
from ..results.verdicts import Kind

NORMAL_95 = 1.96
LEAST_OF_GROUP = 10  # the variance within groups of n comes out too small by 1 / n


@dataclass(frozen=True)
class Interval:
    """A value with its standard deviation; `low` and `high` bound the 95 % interval of a normal distribution."""

    value: float
    std: float

    @property
    def low(self) -> float:
        return self.value - NORMAL_95 * self.std

    @property
    def high(self) -> float:
        return self.value + NORMAL_95 * self.std

    @property
    def estimate(self) -> Estimate:
        """The four numbers as a result type."""
        return Estimate(self.value, self.std, self.low, self.high)


@dataclass(frozen=True)
class Resampled:
    """A value, and its values on bootstrap resamples, (R,) float64."""

    value: float
    replicates: Tensor

    @property
    def interval(self) -> Interval:
        return Interval(self.value, float(self.replicates.std()))

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value) and bool(self.replicates.isfinite().all())


def resample(count: int, resamples: int, seed: int = 0, groups_N: Tensor | None = None) -> Tensor:
    """Indices (resamples, count) drawn with replacement: the same for the same arguments.

    With `groups_N` each item is replaced by one of its own group: samples drawn for fixed classes vary within classes
    only, and resampling across classes would overestimate the variance. Groups of fewer than ten are merged with their
    neighbours, which overestimates it too: a class of one sample has no variance of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    if groups_N is None:
        return torch.randint(count, (resamples, count), generator=generator)
    indices = torch.empty(resamples, count, dtype=torch.int64)
    merged_N = _merged(groups_N)
    for group in merged_N.unique():
        members = (merged_N == group).nonzero().flatten()
        drawn = torch.randint(len(members), (resamples, len(members)), generator=generator)
        indices[:, members] = members[drawn]
    return indices


def _merged(groups_N: Tensor) -> Tensor:
    """Groups of neighbouring groups, as few of them as give each at least ten items (collapsed strata: Cochran 1977,
    section 5A.12)."""
    names, place_N, sizes = groups_N.unique(return_inverse=True, return_counts=True)
    together = math.ceil(LEAST_OF_GROUP / int(sizes.min()))
    return place_N * max(1, len(names) // together) // len(names)


def resample_counts(count: int, resamples: int, seed: int = 0, groups_N: Tensor | None = None) -> Tensor:
    """How often each of `count` items occurs in each row of `resample`, (resamples, count) float64."""
    indices = resample(count, resamples, seed, groups_N)
    return torch.zeros(resamples, count, dtype=torch.float64).scatter_add_(
        1, indices, torch.ones((), dtype=torch.float64).expand_as(indices)
    )


def mean_estimate(values_N: Tensor, counts_RN: Tensor) -> Resampled:
    """The mean of `values_N`, and of each of its resamples."""
    values = values_N.double()
    return Resampled(float(values.mean()), counts_RN @ values / len(values))


def ratio_estimate(over_N: Tensor, under_N: Tensor, counts_RN: Tensor) -> Resampled:
    """The sum of `over_N` divided by that of `under_N`, and the same of each resample."""
    return Resampled(float(over_N.sum() / under_N.sum()), counts_RN @ over_N / (counts_RN @ under_N))


def median_estimate(values_N: Tensor, resamples: int, seed: int = 0) -> Resampled:
    """The median of `values_N`, and of each of its resamples."""
    values = values_N.double()
    return Resampled(float(values.quantile(0.5)), values[resample(len(values), resamples, seed)].quantile(0.5, dim=1))


def difference(a: Resampled, b: Resampled) -> Interval:
    """b - a for two models with the same resamples."""
    return Interval(b.value - a.value, float((b.replicates - a.replicates).std()))


def independent_difference(a: Estimate, b: Estimate) -> Interval:
    """b - a for two independent estimates, of different runs, seeds or data.

    Raises:
        SecateurError: an estimate has no standard deviation.
    """
    if a.std is None or b.std is None:
        raise SecateurError("an estimate without a standard deviation cannot be compared with another one")
    return Interval(b.value - a.value, math.hypot(a.std, b.std))


def verdict(found: Interval, better: Better | None) -> Kind:
    """The verdict on b from the difference b - a: `unclear` if its 95 % interval contains 0."""
    if found.low <= 0 <= found.high:
        return "unclear"
    if better is None:
        return "different"
    return "better" if (found.value < 0) == (better == "lower") else "worse"


def comparisons(
    estimates: Mapping[str, Mapping[str, Resampled]], better: Mapping[str, Better | None]
) -> tuple[Comparison, ...]:
    """Every pair of models, the earlier one as `a`, for every metric that both have.

    `estimates` maps model to metric to estimate; `better` says which direction of each metric is good.
    """
    return tuple(
        Comparison(metric, a, b, found.value, found.std, found.low, found.high, verdict(found, direction))
        for metric, direction in better.items()
        for a, b in combinations(estimates, 2)
        if metric in estimates[a] and metric in estimates[b]
        for found in [difference(estimates[a][metric], estimates[b][metric])]
    )
