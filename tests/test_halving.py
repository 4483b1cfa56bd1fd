"""Successive halving: what a round costs, what a tie is, and which candidate goes first."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.base.errors import SecateurError
from secateur.results import Score
from secateur.results.means import Mean, combine
from secateur.results.means import tied as means_tied
from secateur.runs.halving import SEARCH_SHARE, check_rounds, order, rounds_of, score_of, tied


@given(st.integers(1, 12), st.integers(1000, 100_000))
def test_rounds_halve_the_candidates_and_spend_half_of_the_budget(candidates: int, budget: int) -> None:
    rounds = rounds_of(candidates, budget)
    sizes = [one.candidates for one in rounds]
    assert sizes == [math.ceil(candidates / 2**place) for place in range(len(rounds))]
    assert [*sizes, 1][0] == max(candidates, 1)
    assert all(size > 1 for size in sizes)
    spent = [one.candidates * one.steps for one in rounds]
    assert sum(spent) <= SEARCH_SHARE * budget
    if rounds:
        share = SEARCH_SHARE * budget / len(rounds)
        assert all(share - size < one <= share for one, size in zip(spent, sizes, strict=True))


def test_a_budget_that_is_too_small_names_one_that_would_suffice() -> None:
    with pytest.raises(SecateurError, match="budget of 210 or more") as found:
        check_rounds(rounds_of(7, 30), 30)
    needed = int(str(found.value).partition("budget of ")[2].partition("budget of ")[2].split()[0])
    check_rounds(rounds_of(7, needed), needed)
    with pytest.raises(SecateurError):
        check_rounds(rounds_of(7, needed - 10), needed - 10)
    check_rounds([], 1)


def test_equal_batches_make_small_differences_clear() -> None:
    one = score_of([1.0, 2.0, 3.0, 4.0])
    better = score_of([0.9, 1.9, 2.89, 3.9])
    assert not tied(one, better)
    assert tied(Score(one.value, one.error), Score(better.value, better.error))
    assert tied(one, score_of([1.2, 1.7, 3.3, 3.7]))


def test_of_tied_candidates_the_quickest_goes_first() -> None:
    scores = {"slow": Score(1.0, 0.1), "quick": Score(1.1, 0.1), "bad": Score(3.0, 0.1), "worst": Score(9.0, None)}
    seconds = {"slow": 9.0, "quick": 1.0, "bad": 0.1, "worst": 0.0}
    assert order(scores, seconds) == ["quick", "slow", "bad", "worst"]
    assert order(scores, seconds | {"quick": 10.0})[0] == "slow"


def test_estimates_of_seeds() -> None:
    assert combine([2.0], [0.5]) == Mean(2.0, 0.5, 0.5, 1)
    three = combine([1.0, 2.0, 3.0], [None] * 3)
    assert (three.value, three.spread, three.count) == (2.0, 1.0, 3)
    assert three.error == pytest.approx(1 / math.sqrt(3))
    assert str(three) == "2 ± 1"
    assert str(Mean(0.12345)) == "0.1235"
    assert means_tied(three, Mean(3.1))
    assert not means_tied(three, Mean(3.2))
    assert not means_tied(Mean(1.0), Mean(1.001))
