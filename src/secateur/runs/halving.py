"""Successive halving: many short trials, fewer longer ones, one winner; and when two scores count as different."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from ..base.errors import SecateurError
from ..base.units import number_of
from ..results import Round, Score
from ..results.means import TIED_WITHIN

SEARCH_SHARE = 0.5  # of the budget; the rest is the winner's
FEWEST_STEPS = 5  # of a trial that can be compared


def score_of(parts: Sequence[float]) -> Score:
    """The mean score over two or more batches, which are the same for every candidate."""
    return Score(fmean(parts), stdev(parts) / math.sqrt(len(parts)), tuple(parts))


def tied(one: Score, other: Score) -> bool:
    """Whether two scores differ by less than two standard errors of their difference.

    If both were measured on the same batches, the error is that of their differences batch by batch, which is smaller.
    """
    if one.parts and other.parts:
        differences = [a - b for a, b in zip(one.parts, other.parts, strict=True)]
        error = stdev(differences) / math.sqrt(len(differences))
    else:
        error = math.hypot(one.error or 0.0, other.error or 0.0)
    return abs(one.value - other.value) <= TIED_WITHIN * error


def order(scores: Mapping[str, Score], costs: Mapping[str, float]) -> list[str]:
    """The candidates from best to worst.

    First comes the candidate of lowest cost among those tied with the lowest score; then the same among the others.
    """
    names: list[str] = []
    remaining = list(scores)
    while remaining:
        lowest = min(remaining, key=lambda name: scores[name].value)
        level = [name for name in remaining if tied(scores[name], scores[lowest])]
        chosen = min(level, key=lambda name: (costs[name], scores[name].value))
        names.append(chosen)
        remaining.remove(chosen)
    return names


def rounds_of(candidates: int, budget_steps: int) -> list[Round]:
    """The rounds of a search among `candidates`: each halves their number, and all take equally many steps in total.

    Successive halving after Jamieson & Talwalkar (2016), Figure 1, with half of the budget. One candidate needs none.
    """
    sizes = []
    while candidates > 1:
        sizes.append(candidates)
        candidates = math.ceil(candidates / 2)
    return [Round(size, int(SEARCH_SHARE * budget_steps / len(sizes) / size)) for size in sizes]


def check_rounds(rounds: Sequence[Round], budget_steps: int) -> None:
    """Check that trials are long enough to be compared.

    Raises:
        SecateurError: those of the first round are not.
    """
    if rounds and rounds[0].steps < FEWEST_STEPS:
        first = rounds[0]
        needed = math.ceil(FEWEST_STEPS * len(rounds) * first.candidates / SEARCH_SHARE)
        raise SecateurError(
            f"a budget of {number_of(budget_steps, 'recovery step')} gives {first.candidates} candidates {first.steps} "
            f"each; give a budget of {needed} or more, or fewer --recipes"
        )
