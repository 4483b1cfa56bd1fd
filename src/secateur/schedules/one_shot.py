"""One-shot pruning: one ranking, one cut that meets the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..base.errors import TargetError, require
from ..base.rules import Count, check_fields
from ..criteria import criterion_named
from ..criteria.blocks.measure import block_names
from ..models.pricing import priced
from ..models.registry import describe
from ..results import CutResult, DimCut, Size
from ..structure import Cut, Structure, has_streams
from ..structure.cost import CostModel
from .solver import Allocation, Granularity, Scores, Solution, removal_steps, solve
from .target import Target


@dataclass(frozen=True)
class CutConfig:
    """Which cuts are allowed.

    Attributes:
        allocation: local removes the same fraction everywhere; spare-heads keeps more attention heads, the square root
            of the fraction kept elsewhere; global ranks all units of the model together; global-macs does so by score
            per MAC saved, for scores that compare across layers (reconstruction). auto: spare-heads if the residual
            width is not cut, as in transformers, else local, as in U-Nets; docs/benchmarks/objectives.md has the
            measurements.
        granularity: width removes units of dims, depth removes blocks, both removes either.
        include: patterns over the names of dims, blocks and modules that may be cut, such as "*.heads".
        exclude: patterns over those that must not be cut, such as "mid_block.*"; widths tied to one of them are not cut
            either, and blocks that hold one stay.
        round_to: keep multiples of this many channels wherever widths allow it; such widths run faster.
    """

    allocation: Allocation | Literal["auto"] = "local"
    granularity: Granularity = "width"
    round_to: Count = 8
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields("cut", self)


def granularity_for(target: Target, config: CutConfig) -> Granularity:
    """What a cut for `target` removes; for a number of blocks, always blocks."""
    return "depth" if target.metric == "blocks" else config.granularity


def check_criterion(criterion: str, structure: Structure, granularity: Granularity = "depth") -> None:
    """Check that `criterion` can rank what will be cut, before long work starts.

    Raises:
        SecateurError: it ranks blocks only, and the model has none, or widths will be cut.
    """
    if criterion_named(criterion).ranks == "blocks":
        block_names(structure)
        require(
            granularity == "depth",
            f"criterion {criterion} ranks blocks only, and this cut narrows widths; add --cut.granularity depth, or "
            "give a number of blocks as the target, such as blocks=6",
        )


def one_shot(
    model: nn.Module,
    structure: Structure,
    target: Target,
    scores: Scores,
    config: CutConfig,
    inputs: Mapping[str, Any] | None = None,
    measure_latency: Callable[[Cut], float] | None = None,
) -> tuple[Solution, CutResult]:
    """The cut for `target`, and its description; sizes are counted on `inputs`, or on an example.

    Raises:
        TargetError: the target is out of reach.
    """
    if target.is_quality:
        raise TargetError(
            f"{target} is a quality, which prune and compress find by trying; here ask for a size: macs=50%"
        )
    granularity, allocation = granularity_for(target, config), allocation_for(model, config)
    cost = priced(model, structure, inputs)
    steps = removal_steps(
        structure, scores, allocation=allocation, granularity=granularity, round_to=config.round_to, cost=cost
    )
    solution = solve(structure, target, steps, scores, cost, measure_latency)
    return solution, describe_cut(structure, solution, cost, replace(config, allocation=allocation))


def allocation_for(model: nn.Module, config: CutConfig) -> Allocation:
    """The allocation in `config`; for auto, the one that suits `model`."""
    if config.allocation != "auto":
        return config.allocation
    return "spare-heads" if has_streams(model, describe(model)) else "local"


def describe_cut(structure: Structure, solution: Solution, cost: CostModel, config: CutConfig) -> CutResult:
    """The target asked and reached, sizes before and after, and the width kept of every dim."""
    target, cut = solution.target, solution.cut
    kept = {name: len(units) for name, units in cut.kept.items()}
    before, after = cost({}), cost(kept, cut.removed_blocks)
    return CutResult(
        target=str(target),
        metric=target.metric,
        asked=solution.asked,
        reached=solution.reached,
        dense=solution.dense,
        before=Size(**vars(before)),
        after=Size(**vars(after)),
        dims={
            dim.name: DimCut(dim.size, kept.get(dim.name, dim.size), dim.width)
            for dim in structure.dims.values()
            if structure.owner(dim.slices[0].parameter) not in cut.removed_blocks
        },
        removed_blocks=tuple(cut.removed_blocks),
        allocation=config.allocation,
        granularity=granularity_for(target, config),
        round_to=config.round_to,
    )


def no_scores(structure: Structure) -> dict[str, Tensor]:
    """Equal scores, to plan a cut before anything is ranked."""
    sizes = {name: dim.size for name, dim in structure.dims.items()} | dict.fromkeys(structure.blocks, 1)
    return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
