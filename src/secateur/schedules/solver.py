"""From a target to widths: which units and blocks to remove, respecting norm groups, head sizes and `round_to`.

Removal follows a path: an ordered list of steps, each the smallest change that a dim (with the dims linked to it) or a
block allows. Local allocation orders the steps by the fraction that stays, spare-heads by its square for attention
heads, global allocation by their score, and global-macs by their score per MAC saved. The solver walks down the path
until the target holds, then undoes steps that were not needed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..base.errors import TargetError
from ..structure import Cut, Dim, Structure
from ..structure.cost import CostModel
from .target import Metric, Target, format_amount

Allocation = Literal["local", "spare-heads", "global", "global-macs"]
Granularity = Literal["width", "depth", "both"]
Scores = Mapping[str, Tensor]  # dim name -> (units,), block name -> (1,); lowest removed first; no dims for depth alone


@dataclass(frozen=True)
class Step:
    """After it the link keeps `level`, or, with level 0, the block is removed. Steps are taken in order of rising
    `key`."""

    name: str
    level: int
    before: int
    key: float
    is_block: bool = False


@dataclass(frozen=True)
class Widths:
    """A state on the path: the level of each link and the blocks removed."""

    levels: Mapping[str, int]
    removed_blocks: frozenset[str] = frozenset()

    def kept(self, structure: Structure) -> dict[str, int]:
        """Units kept per dim."""
        return {dim.name: dim.kept_at(self.levels[link]) for link, dims in structure.links.items() for dim in dims}


@dataclass(frozen=True)
class Solution:
    """The cut, and the dense, asked and reached amounts in the metric's unit."""

    cut: Cut
    target: Target
    dense: float
    asked: float
    reached: float


def allowed_levels(dims: Sequence[Dim], round_to: int) -> list[int]:
    """Levels, ascending, at which every dim of a link keeps a multiple of `round_to` channels, and the full level.

    If no smaller level gives such multiples (the widths are too small), every level is allowed.
    """
    full = dims[0].levels
    rounded = [level for level in range(1, full) if all(dim.kept_at(level) * dim.width % round_to == 0 for dim in dims)]
    return [*(rounded or range(1, full)), full]


def removal_steps(
    structure: Structure,
    scores: Scores,
    *,
    allocation: Allocation = "local",
    granularity: Granularity = "width",
    round_to: int = 8,
    cost: CostModel | None = None,
) -> list[Step]:
    """Every removal step of the model in the order in which they are taken; global-macs needs the `cost` of widths."""
    steps: list[Step] = []
    heads = set(structure.attention.values())
    if granularity in ("width", "both"):
        for link, dims in structure.links.items():
            power = 2 if allocation == "spare-heads" and heads.issuperset(dim.name for dim in dims) else 1
            steps += _link_steps(link, dims, allowed_levels(dims, round_to), scores, allocation, cost, power)
    if granularity in ("depth", "both"):
        steps += _block_steps(structure, scores, allocation if granularity == "both" else "local", cost)
    return sorted(steps, key=lambda step: step.key)


def _link_steps(
    link: str,
    dims: Sequence[Dim],
    levels: list[int],
    scores: Scores,
    allocation: Allocation,
    cost: CostModel | None,
    power: int = 1,
) -> list[Step]:
    """Steps of one link.

    Local allocation keys them by what is gone of the fraction that stays, to the `power`; global allocation by the mean
    normalized score of the units removed, global-macs by the sum of their scores per MAC that the step saves while
    everything else is dense.
    """

    def key(level: int, before: int) -> float:
        if allocation in ("local", "spare-heads"):
            return 1 - ((level + before) / 2 / levels[-1]) ** power
        if allocation == "global":
            return (
                torch.cat([_lost_scores(dim, normalized(scores[dim.name]), level, before) for dim in dims])
                .mean()
                .item()
            )
        assert cost is not None
        saved = cost({dim.name: dim.kept_at(before) for dim in dims}).macs
        saved -= cost({dim.name: dim.kept_at(level) for dim in dims}).macs
        return sum(_lost_scores(dim, scores[dim.name], level, before).sum().item() for dim in dims) / max(saved, 1.0)

    steps, floor = [], float("-inf")
    for level, before in zip(levels[-2::-1], levels[:0:-1], strict=True):
        floor = max(floor, key(level, before))  # a link's steps keep their order
        steps.append(Step(link, level, before, floor))
    return steps


def _block_steps(structure: Structure, scores: Scores, allocation: Allocation, cost: CostModel | None) -> list[Step]:
    """One step per removable block. Local allocation spreads them over the path of the widths by rank."""
    names = sorted(structure.blocks, key=lambda name: scores[name].item())
    mean = torch.cat([scores[name] for name in names]).abs().mean().item() if names else 1.0
    steps = []
    for rank, name in enumerate(structure.removable(names)):
        if allocation in ("local", "spare-heads"):
            key = (rank + 0.5) / len(names)
        elif allocation == "global":
            key = scores[name].item() / (mean or 1.0)
        else:
            assert cost is not None
            key = scores[name].item() / max(cost({}).macs - cost({}, [name]).macs, 1.0)
        steps.append(Step(name, 0, 1, key, is_block=True))
    return steps


def normalized(scores: Tensor) -> Tensor:
    """Scores divided by their mean magnitude, so that different dims can be ranked together; signs stay."""
    return scores / scores.abs().mean().clamp_min(torch.finfo(scores.dtype).tiny)


def _lost_scores(dim: Dim, scores: Tensor, level: int, before: int) -> Tensor:
    """Scores of the units that each cell loses between two levels."""
    parts = []
    for cell in dim.cell_ranges():
        falling = scores[cell.start : cell.stop].sort(descending=True).values
        parts.append(falling[len(cell) * level // dim.levels : len(cell) * before // dim.levels])
    return torch.cat(parts)


def solve(
    structure: Structure,
    target: Target,
    steps: Sequence[Step],
    scores: Scores,
    cost: CostModel,
    measure_latency: Callable[[Cut], float] | None = None,
) -> Solution:
    """The largest state on the path of `steps` that meets `target`, with its units chosen by `scores`.

    The gap to an analytic target is smaller than the last step down the path. Latency is measured by
    `measure_latency` (ms) along the path only, since every measurement builds a model.

    Raises:
        TargetError: the target lies outside what the steps can reach; the message names the range.
    """
    dense_widths = uncut(structure)
    measure = measure_by(structure, target.metric, scores, cost, measure_latency)
    dense = measure(dense_widths)
    asked = target.amount(dense)
    smallest = measure(walk(dense_widths, steps))
    tolerance = 1e-9 * dense
    if not smallest - tolerance <= asked <= dense + tolerance:
        low, high = (format_amount(target.metric, value) for value in (smallest, dense))
        percentage = not target.is_fraction and 1 < target.value <= 100 and target.metric in ("macs", "params")
        meant = f"did you mean {target.metric}={target.value:g}%? " if percentage else ""
        raise TargetError(
            f"{target} ({format_amount(target.metric, asked)}) is out of reach; {meant}this model goes from {high} "
            f"down to {low} ({100 * smallest / dense:.3g}%) with these settings; ask for a size in between, or allow "
            "other units (smaller round_to, other granularity)"
        )
    low_count, high_count = 0, len(steps)
    while low_count < high_count:
        middle = (low_count + high_count) // 2
        if measure(walk(dense_widths, steps[:middle])) <= asked + tolerance:
            high_count = middle
        else:
            low_count = middle + 1
    widths = walk(dense_widths, steps[:high_count])
    if target.metric != "latency":
        widths = _take_back(widths, steps[:high_count], lambda state: measure(state) <= asked + tolerance)
    cut = choose_units(structure, scores, widths)
    return Solution(cut, target, dense, asked, measure(widths))


def measure_by(
    structure: Structure,
    metric: Metric,
    scores: Scores,
    cost: CostModel,
    measure_latency: Callable[[Cut], float] | None,
) -> Callable[[Widths], float]:
    """A function from a state to its `metric`, in the unit of targets."""
    if metric == "latency":
        assert measure_latency is not None
        timed: dict[tuple[frozenset[tuple[str, int]], frozenset[str]], float] = {}

        def latency(widths: Widths) -> float:
            # Measured once, so that the reported value is the one that the search compared.
            key = (frozenset(widths.levels.items()), widths.removed_blocks)
            if key not in timed:
                timed[key] = measure_latency(choose_units(structure, scores, widths))
            return timed[key]

        return latency
    if metric == "blocks":
        return lambda widths: float(len(structure.blocks) + len(structure.outside) - len(widths.removed_blocks))
    attribute = {"macs": "macs", "params": "parameters"}[metric]
    return lambda widths: getattr(cost(widths.kept(structure), widths.removed_blocks), attribute)


def uncut(structure: Structure) -> Widths:
    """The state in which everything is kept."""
    return Widths({link: dims[0].levels for link, dims in structure.links.items()})


def walk(widths: Widths, steps: Sequence[Step]) -> Widths:
    """The state after `steps`."""
    levels = dict(widths.levels)
    removed = set(widths.removed_blocks)
    for step in steps:
        if step.is_block:
            removed.add(step.name)
        else:
            levels[step.name] = step.level
    return Widths(levels, frozenset(removed))


def _take_back(widths: Widths, taken: Sequence[Step], fits: Callable[[Widths], bool]) -> Widths:
    """Undo the last step of each link or block, latest first, as long as the target still holds.

    Only one step each, so that dims which matter little to the target's metric do not grow back entirely.
    """
    last = {step.name: step for step in taken}
    for step in sorted(last.values(), key=lambda step: -step.key):
        levels, removed = dict(widths.levels), set(widths.removed_blocks)
        if step.is_block:
            removed.discard(step.name)
        else:
            levels[step.name] = step.before
        candidate = Widths(levels, frozenset(removed))
        if fits(candidate):
            widths = candidate
    return widths


def choose_units(structure: Structure, scores: Scores, widths: Widths) -> Cut:
    """In every cell, keep the units that score highest (the earlier one on ties)."""
    kept = {}
    for link, dims in structure.links.items():
        for dim in dims:
            if widths.levels[link] == dim.levels or structure.owner(dim.slices[0].parameter) in widths.removed_blocks:
                continue
            units: list[int] = []
            for cell in dim.cell_ranges():
                count = len(cell) * widths.levels[link] // dim.levels
                order = scores[dim.name][cell.start : cell.stop].sort(descending=True, stable=True).indices
                units += (order[:count] + cell.start).tolist()
            kept[dim.name] = tuple(sorted(units))
    return Cut(kept, tuple(name for name in structure.blocks if name in widths.removed_blocks))
