"""From a recipe to the pruner of its schedule, for the schedules that prune during recovery."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor
from typing_extensions import assert_never

from ..base.files import read_json, write_json
from ..data import ImageDataset
from ..io.checkpoint import Loaded
from ..models.network import example_inputs
from ..recipes import Recipe
from ..recovery import Pruner
from ..schedules import Adaptive, Progressive, Target, block_cuts, judge, stage_scorer
from ..structure import Cut, Structure
from ..structure.cost import cost_model
from .stages import calibration, latency_of, solve_cut


def make_pruner(
    out: Path,
    loaded: Loaded,
    structure: Structure,
    dataset: ImageDataset,
    target: Target,
    scores: dict[str, Tensor],
    recipe: Recipe,
    base_id: str,
) -> Pruner | None:
    """The pruner of the recipe's schedule; None for one shot, which has cut before.

    Writes `goal.json`, and `cut.json` with its table and plot: the one-shot cut by `scores`. A progressive run ends at
    its widths and blocks, an adaptive one at the amount that it was asked for.
    """
    if recipe.schedule == "one-shot":
        return None
    path = out / "goal.json"
    if not path.is_file():
        cut, recorded = solve_cut(out, loaded, structure, target, scores, recipe.cut)
        write_json(path, {"kept": cut.kept, "removed_blocks": cut.removed_blocks, "recorded": recorded})
    goal = read_json(path)
    scoring = recipe.progressive.scoring(recipe.scoring) if recipe.schedule == "progressive" else recipe.scoring
    batch = calibration(loaded, dataset, scoring)
    scorer = stage_scorer(loaded.process, batch, recipe.criterion, scoring)
    cost = cost_model(loaded.model, structure, example_inputs(loaded.model, 1))
    described = {"criterion": recipe.criterion, "scoring": asdict(scoring), "target": str(target)}
    details = {**goal["recorded"], "schedule": recipe.schedule, "cut": asdict(recipe.cut), **described}
    if recipe.schedule == "progressive":
        wanted = Cut({name: tuple(units) for name, units in goal["kept"].items()}, tuple(goal["removed_blocks"]))
        details |= {"progressive": asdict(recipe.progressive)}
        return Progressive(recipe.progressive, wanted, scorer, cost, described, details, base_id)
    if recipe.schedule == "adaptive":
        del details["reached"]  # by the one-shot cut; stages may choose other blocks
        details |= {"adaptive": asdict(recipe.adaptive)}
        return Adaptive(
            recipe.adaptive,
            recipe.adaptive.boundaries(recipe.recovery.steps),
            block_cuts(Target(target.metric, goal["recorded"]["asked"], is_fraction=False), recipe.cut, latency_of),
            scores,
            scorer,
            judge(loaded.process, batch, scoring.seed),
            cost({}).macs,
            described,
            details,
            base_id,
        )
    assert_never(recipe.schedule)
