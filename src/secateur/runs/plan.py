"""What a run will make of the model, found before long work starts: reachable target, predicted size."""

from __future__ import annotations

from torch import nn

from ..base.console import say
from ..base.units import format_count
from ..models.network import example_inputs
from ..results import CutResult
from ..schedules import CutConfig, Target, no_scores, one_shot
from ..structure import Structure


def plan_cut(model: nn.Module, structure: Structure, target: Target, cut: CutConfig) -> CutResult | None:
    """Plan the cut with equal scores; None for a latency target, which only measuring can plan.

    Widths under local allocation do not depend on scores; under global allocation the plan is an estimate.

    Raises:
        TargetError: the target is out of reach.
    """
    if target.metric == "latency":
        return None
    return one_shot(model, structure, target, no_scores(structure), cut, example_inputs(model, 1))[1]


def print_plan(plan: CutResult | None, structure: Structure, target: Target, cut: CutConfig) -> None:
    """Print the predicted size."""
    say(f"target     {target}")
    if plan is None:
        say("cut        found by measuring latency on this device during the run")
        return
    for name, label in (("macs", "MACs"), ("parameters", "parameters")):
        before, after = getattr(plan.before, name), getattr(plan.after, name)
        say(f"{label:10} {format_count(before)} -> {format_count(after)} ({100 * after / before:.1f}%)")
    narrowed = sum(dim.kept < dim.units for dim in plan.dims.values())
    blocks = len(plan.removed_blocks)
    say(f"cut        {narrowed} of {len(structure.dims)} widths, {blocks} of {len(structure.blocks)} blocks")
    if cut.allocation != "local":
        say(f"           ({cut.allocation} allocation: the ranking will change these numbers)")
