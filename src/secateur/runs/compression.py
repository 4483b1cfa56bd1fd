"""A compression: rank, cut, recover and evaluate, one stage after the other."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..base.distributed import is_main_process, main_first, wait_for_everyone
from ..criteria import criterion_named
from ..data import ImageDataset
from ..evaluation import plan_evaluation
from ..io.locate import Component
from ..io.pipeline import Loaded
from ..process.named import ProcessName
from ..recipes import Recipe, recipe_named
from ..recovery import Pruner, RecoveryConfig, WarmupConfig
from ..results import CutResult
from ..schedules import Target, check_criterion, granularity_for
from ..structure import Structure
from .checks import check_recovery, check_schedule
from .plan import plan_cut
from .pruners import make_pruner
from .stages import cut_stage, evaluate_stage, on_cpu, rank_stage, recover_stage, reopened, settle_stage


def check(
    loaded: Loaded, structure: Structure, dataset: ImageDataset, goal: Target, settings: Recipe
) -> CutResult | None:
    """Find what would stop a compression, before long work starts; returns the planned cut (`plan_cut`).

    Raises:
        SecateurError: the recipe does not fit the model, the data or the steps, or the target is out of reach.
    """
    check_recovery(loaded.model, dataset, settings.recovery, loaded.model)
    granularity = granularity_for(goal, settings.cut)
    check_schedule(settings, granularity)
    plan_evaluation({"dense": loaded.model, "recovered": loaded.model}, loaded.process, dataset, settings.evaluation)
    check_criterion(settings.criterion, structure, granularity)
    return plan_cut(loaded.model, structure, goal, settings.cut)


def run_settings(
    model: str,
    goal: Target,
    data: str,
    recipe: str,
    process: ProcessName,
    settings: Recipe,
    component: Component | None = None,
    warmup: WarmupConfig | None = None,
) -> dict[str, Any]:
    """What `config.json` of a compression says, and what a command that takes it up must share."""
    places = {"model": model, "target": str(goal), "data": data, "recipe": recipe, "process": process}
    return {"command": "compress", **places, "component": component, "warmup": warmup, **asdict(settings)}


def compress_stages(
    run: Path,
    loaded: Loaded,
    structure: Structure,
    dataset: ImageDataset,
    goal: Target,
    settings: Recipe,
    model: str,
    cache: Path | None = None,
) -> None:
    """Rank, cut, recover and evaluate in the run folder `run`; what is there already is not done again.

    Of several processes one ranks and cuts, all recover, and all draw samples.

    Runs may share a `cache`, where they find the samples of the same models again: see `evaluate_models`.
    """
    models, start = {"dense": loaded.model}, loaded.model

    def plan() -> tuple[nn.Module | None, Pruner | None]:
        scores, pruned = rank_stage(run, loaded, structure, dataset, settings.criterion, settings.scoring), None
        if settings.schedule == "one-shot":
            details = {"criterion": settings.criterion, "scoring": asdict(settings.scoring)}
            pruned = cut_stage(run, loaded, structure, goal, scores, settings.cut, details, model)
        return pruned, make_pruner(run, loaded, structure, dataset, goal, scores, settings, model)

    pruned, pruner = main_first(plan, on_cpu(loaded))
    if pruned is not None:
        start = models["pruned"] = pruned
    recover_stage(run, start, loaded, dataset, settings.recovery, loaded.model, pruner)
    if settings.schedule == "adaptive" and is_main_process():
        settle_stage(run, loaded, structure, goal, settings.cut)
    wait_for_everyone(on_cpu(loaded))
    models["recovered"] = reopened(run / "model", loaded)
    evaluate_stage(run, models, loaded, dataset, settings.evaluation, cache)


def resolve(
    recipe: str, *, steps: int | None = None, objective: str | None = None, seed: int | None = None, **parts: Any
) -> Recipe:
    """The recipe with what was given, which is not None, in the place of its own; `parts` are fields of `Recipe`.

    What the recipe chose for its own criterion or objective does not go over to another: options, weights, and how to
    compute Jacobian products.

    Raises:
        SecateurError: there is no such recipe, criterion, or option of it.
    """
    named = recipe_named(recipe)
    chosen = replace(named, **given(parts))
    criterion, scoring = criterion_named(chosen.criterion), chosen.scoring
    if scoring.options is None and criterion.name == named.criterion:
        scoring = replace(scoring, options=named.scoring.options)
    elif scoring.options == named.scoring.options and criterion.name != named.criterion:
        scoring = replace(scoring, options=None)
    recovery = replace(chosen.recovery, **given({"steps": steps, "objective": objective}))
    if recovery.objective != named.recovery.objective:
        for part in ("weights", "jacobian"):
            if getattr(recovery, part) == getattr(named.recovery, part):
                recovery = replace(recovery, **{part: getattr(RecoveryConfig(), part)})
    seeds = given({"seed": seed})
    return replace(
        chosen,
        scoring=replace(criterion.configured(scoring), **seeds),
        recovery=replace(recovery, **seeds),
        evaluation=replace(chosen.evaluation, **seeds),
    )


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}
