"""Cuts of blocks of a model that shrinks in stages: which blocks take it to a target, and a description of all cuts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from torch import nn

from ..models.pricing import priced
from ..results import CutResult
from ..structure import Cut, Structure
from .one_shot import CutConfig, allocation_for, describe_cut, no_scores
from .solver import Scores, Solution, measure_by, removal_steps, solve, uncut
from .target import Target

# From a model and its structure to a function that measures the latency (ms) of a cut of it.
LatencyOf: TypeAlias = Callable[[nn.Module, Structure], Callable[[Cut], float]]


def block_cuts(
    target: Target, config: CutConfig, latency_of: LatencyOf
) -> Callable[[nn.Module, Structure, Scores], Cut]:
    """A function from a model, its structure and scores of its blocks to the cut of blocks that reaches `target`.

    The target is an absolute amount, so that it stays the same while the model shrinks. A model that meets it is not
    cut.
    """

    def goal(model: nn.Module, structure: Structure, scores: Scores) -> Cut:
        steps = removal_steps(structure, scores, granularity="depth")
        cost = priced(model, structure)
        latency = _once(latency_of(model, structure))
        present = measure_by(structure, target.metric, scores, cost, latency)(uncut(structure))
        reachable = replace(target, value=min(target.value, present))
        return solve(structure, reachable, steps, scores, cost, latency).cut

    return goal


def settled(
    model: nn.Module,
    structure: Structure,
    target: Target,
    removed: Sequence[str],
    config: CutConfig,
    latency_of: LatencyOf,
) -> CutResult:
    """Describe the cut of a dense `model` that all decisions together made; `target` is as the user gave it."""
    cost = priced(model, structure)
    measure = measure_by(structure, target.metric, no_scores(structure), cost, latency_of(model, structure))
    whole = uncut(structure)
    dense, reached = measure(whole), measure(replace(whole, removed_blocks=frozenset(removed)))
    cut = Cut({}, tuple(name for name in structure.blocks if name in removed))
    solution = Solution(cut, target, dense, target.amount(dense), reached)
    return describe_cut(structure, solution, cost, replace(config, allocation=allocation_for(model, config)))


def _once(measure: Callable[[Cut], float]) -> Callable[[Cut], float]:
    """`measure`, called once for each set of removed blocks: a latency is never the same twice."""
    found: dict[tuple[str, ...], float] = {}

    def measured(cut: Cut) -> float:
        if cut.removed_blocks not in found:
            found[cut.removed_blocks] = measure(cut)
        return found[cut.removed_blocks]

    return measured
