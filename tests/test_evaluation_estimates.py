"""Whether intervals and verdicts have the coverage that they claim."""

import math

import pytest
import torch

from secateur.evaluation import independent_difference, verdict
from secateur.evaluation.estimates import (
    Interval,
    Resampled,
    comparisons,
    difference,
    mean_estimate,
    median_estimate,
    resample,
    resample_counts,
)


def values(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_counts_are_those_of_the_indices() -> None:
    indices, counts = resample(7, 5, 3), resample_counts(7, 5, 3)
    assert counts.tolist() == [torch.bincount(row, minlength=7).tolist() for row in indices]
    assert torch.equal(counts, resample_counts(7, 5, 3))
    assert not torch.equal(counts, resample_counts(7, 5, 4))


def test_groups_are_resampled_within() -> None:
    groups = torch.tensor([0, 1, 2] * 10)
    indices = resample(30, 6, groups_N=groups)
    assert torch.equal(groups[indices], groups.expand(6, 30))
    assert len(indices.unique()) > 3
    by_class = 100.0 * groups + values(30, 0)
    mixed, within = (mean_estimate(by_class, resample_counts(30, 200, 0, g)).interval.std for g in (None, groups))
    assert within < mixed / 20


@pytest.mark.parametrize(("classes", "count"), [(1000, 1000), (1000, 400), (300, 1000), (7, 60), (100, 12)])
def test_classes_of_few_samples_are_resampled_together(classes, count):
    labels = torch.arange(count) % classes
    found = mean_estimate(values(count, 0), resample_counts(count, 500, 0, labels))
    assert found.interval.std == pytest.approx(1 / math.sqrt(count), rel=0.25)
    # Neighbours only: what differs between distant classes is no uncertainty.
    drawn = labels[resample(count, 20, 0, labels)]
    least = min(count, classes)
    assert (drawn - labels).abs().max() < 2 * math.ceil(10 / (count // least))


def test_the_deviation_of_a_mean_is_its_standard_error() -> None:
    found = mean_estimate(3 + 2 * values(400, 0), resample_counts(400, 2000))
    assert found.interval.std == pytest.approx(2 / 20, rel=0.1)
    assert found.interval.low == pytest.approx(found.value - 1.96 * found.interval.std)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    counts = resample_counts(60, 200)
    held = [mean_estimate(values(60, seed), counts).interval for seed in range(300)]
    share = sum(found.low <= 0 <= found.high for found in held) / len(held)
    assert 0.9 <= share <= 0.98


def test_a_median_and_its_resamples() -> None:
    times = torch.tensor([5.0, 1.0, 2.0, 9.0])
    found = median_estimate(times, 50)
    assert found.value == 3.5
    drawn = times[resample(4, 50)].double()
    assert found.replicates[7].item() == pytest.approx(drawn[7].quantile(0.5).item())


def test_what_two_models_share_cancels() -> None:
    shared, counts = 10 * values(200, 0), resample_counts(200, 500)
    a, b = mean_estimate(shared, counts), mean_estimate(shared + 0.1 + 0.1 * values(200, 1), counts)
    paired = difference(a, b)
    apart = independent_difference(a.interval.estimate, b.interval.estimate)
    assert paired.value == pytest.approx(apart.value)
    assert paired.std < apart.std / 20
    assert (verdict(paired, "lower"), verdict(paired, "higher"), verdict(paired, None)) == (
        "worse",
        "better",
        "different",
    )
    assert verdict(apart, "lower") == "unclear"
    assert apart.std == pytest.approx(math.hypot(a.interval.std, b.interval.std))


def test_equal_models_have_no_measurable_difference() -> None:
    assert verdict(Interval(0.0, 0.0), "lower") == "unclear"
    assert verdict(Interval(1e-9, 0.0), "lower") == "worse"


def test_every_pair_is_compared_by_the_metrics_that_both_have() -> None:
    counts = resample_counts(50, 20)
    low, high = mean_estimate(values(50, 0), counts), mean_estimate(values(50, 0) + 1, counts)
    found = comparisons(
        {"dense": {"fd": low}, "pruned": {"fd": high, "ssim": low}, "recovered": {"fd": low, "ssim": high}},
        {"fd": "lower", "ssim": "higher"},
    )
    said = [(row.metric, row.a, row.b, row.verdict) for row in found]
    assert said == [
        ("fd", "dense", "pruned", "worse"),
        ("fd", "dense", "recovered", "unclear"),
        ("fd", "pruned", "recovered", "better"),
        ("ssim", "pruned", "recovered", "better"),
    ]
    assert found[0].low <= found[0].difference <= found[0].high


def test_estimates_that_are_not_finite_are_known() -> None:
    assert not Resampled(math.inf, torch.ones(3)).finite
    assert not Resampled(1.0, torch.tensor([1.0, math.nan])).finite
