"""From a recipe to the pruner of its schedule, for the schedules that prune during recovery."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..base.files import read_json, write_json
from ..data import ImageDataset
from ..io.pipeline import Loaded
from ..recipes import Recipe
from ..recovery import Pruner
from ..schedules import Goal, Target, build_pruner
from ..structure import Cut, Structure
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
    cut = Cut({name: tuple(units) for name, units in goal["kept"].items()}, tuple(goal["removed_blocks"]))
    scoring = recipe.progressive.scoring(recipe.scoring) if recipe.schedule == "progressive" else recipe.scoring
    return build_pruner(
        recipe.progressive if recipe.schedule == "progressive" else recipe.adaptive,
        loaded.model,
        structure,
        loaded.process,
        calibration(loaded, dataset, scoring),
        Goal(target, cut, scores, goal["recorded"]),
        criterion=recipe.criterion,
        scoring=recipe.scoring,
        cut=recipe.cut,
        steps=recipe.recovery.steps,
        latency_of=latency_of,
        base_id=base_id,
    )
