"""Random numbers as a function of seed, purpose, step and index: independent, and the same however they are drawn."""

import time
from itertools import combinations

import torch
from scipy import stats

from secateur.base import seeds
from secateur.base.seeds import Purpose, normal, permutation, stream, torch_seed, uniform

SHAPE = (2, 3, 4)


def drawn(seed=0, purpose=Purpose.SAMPLE, indices=range(8), **options):
    return normal(SHAPE, indices, seed, purpose, **options)


def test_a_row_does_not_depend_on_the_rows_drawn_with_it(monkeypatch):
    together = drawn(indices=range(8))
    apart = [drawn(indices=part) for part in (range(3), range(3, 4), range(4, 8))]
    assert torch.equal(torch.cat(apart), together)
    assert torch.equal(drawn(indices=[7, 0, 7]), together[[7, 0, 7]])
    monkeypatch.setattr(seeds, "ENTRIES_FOR_THREADS", 0)
    assert torch.equal(drawn(indices=range(8)), together)


def test_rows_are_those_of_their_streams():
    for index, row in zip([7, 0, 7], drawn(3, indices=[7, 0, 7], step=5, part=2), strict=True):
        alone = stream(3, Purpose.SAMPLE, step=5, index=index, part=2).standard_normal(SHAPE, dtype="float32")
        assert torch.equal(row, torch.from_numpy(alone))


def test_longer_rows_begin_as_shorter_ones():
    assert torch.equal(normal((10,), [5], 0, Purpose.NOISE)[:, :4], normal((4,), [5], 0, Purpose.NOISE))


def test_streams_share_no_number():
    streams = [drawn(seed) for seed in range(3)] + [drawn(0, purpose) for purpose in list(Purpose)[1:]]
    streams += [drawn(step=1), drawn(step=2), drawn(part=1)]
    rows = [row.flatten().tolist() for each in streams for row in each]
    assert len({number for row in rows for number in row}) > 0.999 * sum(map(len, rows))
    assert len({tuple(row) for row in rows}) == len(rows)


def test_neighbouring_seeds_are_independent():
    """Before, sample i was drawn from seed + i: runs of seeds 0 and 1 shared all samples but one."""
    first, second = (drawn(seed, indices=range(400)).flatten(1) for seed in (0, 1))
    shifted = [(first, second), (first[1:], second[:-1]), (first[:-1], second[1:]), (first[:-1], first[1:])]
    for a, b in shifted:
        correlation = (a * b).mean().item()
        assert abs(correlation) < 4 / a.numel() ** 0.5


def test_numbers_are_normal_and_uniform():
    assert stats.kstest(normal((100,), range(100), 3, Purpose.NOISE).flatten().numpy(), "norm").pvalue > 1e-3
    found = uniform(10_000, 3, Purpose.STEP)
    assert stats.kstest(found.numpy(), "uniform").pvalue > 1e-3
    assert found.min() >= 0
    assert found.max() < 1
    assert torch.equal(found * 2**24, (found * 2**24).round())


def test_permutations_of_steps_differ():
    found = [permutation(50, 0, Purpose.EPOCH, step=step) for step in range(3)]
    assert all(torch.equal(one.sort().values, torch.arange(50)) for one in found)
    assert not any(torch.equal(a, b) for a, b in combinations(found, 2))
    assert torch.equal(permutation(50, 0, Purpose.EPOCH, step=1), found[1])


def test_seeds_for_torch_are_distinct_and_as_torch_takes_them():
    found = {
        torch_seed(seed, purpose, step=step, index=index)
        for seed in (0, 1, seeds.MOST)
        for purpose in Purpose
        for step in range(3)
        for index in range(3)
    }
    assert len(found) == 3 * len(Purpose) * 9
    assert all(0 <= seed < 2**63 for seed in found)


def test_the_numbers_of_this_version():
    """`VERSION` is part of the name of what is stored by seed, so it must change with these numbers."""
    assert seeds.VERSION == 1
    found = normal((3,), [2], 1, Purpose.SAMPLE, step=4)
    assert found[0].tolist() == [0.8143233060836792, 0.5956249833106995, 1.5619232654571533]
    assert torch_seed(1, Purpose.SAMPLER, index=2) == 7657733591005259624


def test_a_large_draw_takes_about_as_long_as_torchs():
    shape, count = (16, 64, 64), 64

    def seconds(call):
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    ours = min(seconds(lambda: normal(shape, range(count), 0, Purpose.NOISE)) for _ in range(3))
    theirs = min(seconds(lambda: torch.randn(count, *shape)) for _ in range(3))
    assert ours < 10 * theirs + 0.05
