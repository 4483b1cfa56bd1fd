"""`secateur compress`: load, rank, cut, recover, evaluate, report; resumable."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from ..base.distributed import is_main_process, main_first, wait_for_everyone
from ..criteria import CriterionName, ScoringConfig
from ..data import ImageDataset
from ..evaluation import EvaluationConfig, check_evaluation
from ..io.checkpoint import Loaded
from ..models.labels import relabel
from ..recipes import Recipe, ScheduleName, recipe_named
from ..recovery import Pruner, RecoveryConfig, WarmupConfig
from ..reporting import read_run, summarize, write_report
from ..runs.checks import check_criterion, check_new_labels, check_recovery, check_schedule
from ..runs.plan import plan_cut, print_plan
from ..runs.pruners import make_pruner
from ..runs.stages import (
    cut_stage,
    evaluate_stage,
    on_cpu,
    pipeline_stage,
    rank_stage,
    recover_stage,
    reopened,
    settle_stage,
    warmup_stage,
)
from ..runs.subject import Component, Model, ProcessName, encode_data, open_data, open_model, say, start_run
from ..runs.timing import print_times, work_of
from ..schedules import AdaptiveConfig, CutConfig, ProgressiveConfig, Target, granularity_for, parse_target
from ..structure import Structure


def compress(
    model: Model,
    *,
    target: str,
    data: str,
    out: Path,
    recipe: str = "diff-pruning",
    criterion: CriterionName | None = None,
    schedule: ScheduleName | None = None,
    objective: str | None = None,
    steps: int | None = None,
    seed: int | None = None,
    scoring: ScoringConfig | None = None,
    progressive: ProgressiveConfig | None = None,
    adaptive: AdaptiveConfig | None = None,
    cut: CutConfig | None = None,
    recovery: RecoveryConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Prune a model to a target, recover what that cost, evaluate, and write a report.

    Run the same command again to take up a run that was stopped. The result is the folder OUT/model, or
    OUT/pipeline when a pipeline was given. Start it with torchrun or accelerate launch for several processes.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        target: what stays: macs=56%, macs=3.4G, params=20M, blocks=6 (six are left)
            or latency=20ms (one call at batch 1 on this device).
        data: image folder (sub-folders are classes), parquet, datasets:NAME, .npz with images and labels, or digits.
        out: run folder.
        recipe: a named recipe (diff-pruning, 2ndmatch, progressive, gradient-flow, entpruner, depth, taylor,
            magnitude, random, decoder, quickstart); what follows replaces its parts.
        criterion: which criterion ranks the units; ced, deviation, uniform, cosine and loss-change rank blocks only.
        schedule: one-shot cuts before recovery; progressive shrinks soft masks during it; adaptive decides during it
            how many blocks leave.
        objective: what recovery minimizes: denoising, distillation, first-order or 2ndmatch.
        steps: recovery steps.
        seed: one seed for scoring, recovery and evaluation, instead of their own.
        scoring: options of the criterion.
        progressive: how soft masks shrink.
        adaptive: when and how many blocks leave.
        cut: which cuts are allowed.
        recovery: how to fine-tune.
        evaluation: what to measure.
        new_labels: the data's classes replace the model's: fresh label embeddings, trained before the ranking.
        warmup: how the new labels are trained.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
        dry_run: print the plan, the predicted size and time, and stop.

    Returns:
        The run folder.

    Raises:
        SecateurError: bad input, an unreachable target, a run that cannot go on; always one clear line.
    """
    settings = resolve(
        recipe,
        steps=steps,
        objective=objective,
        seed=seed,
        criterion=criterion,
        scoring=scoring,
        schedule=schedule,
        progressive=progressive,
        adaptive=adaptive,
        cut=cut,
        recovery=recovery,
        evaluation=evaluation,
    )
    goal = parse_target(target)
    loaded, structure = open_model(model, process, device, component)
    dataset = open_data(data, loaded, new_labels)
    if new_labels:
        check_new_labels(dataset)
        relabel(loaded.model, len(dataset.class_names), settings.recovery.seed)
    warmup = (warmup or WarmupConfig()) if new_labels else None
    plan = check(loaded, structure, dataset, goal, settings)
    if dry_run:
        print_plan(plan, structure, goal, settings.cut)
        print_times(loaded, work_of(settings, plan, warmup))
        return Path(out)
    begun = time.perf_counter()
    wait_for_everyone(on_cpu(loaded))  # nobody writes where the settings are refused
    run = start_run(out, run_settings(model, goal, data, recipe, process, settings, component, warmup))
    dataset = encode_data(dataset, loaded)
    if warmup is not None:
        loaded = warmup_stage(run, loaded, dataset, warmup, settings.recovery, model)
    compress_stages(run, loaded, structure, dataset, goal, settings, model)
    pipeline_stage(run, loaded)
    if not is_main_process():
        return run
    page = write_report(run)
    for sentence in summarize(read_run(run)).sentences:
        say(sentence)
    result = f"pipeline {run / 'pipeline'}" if loaded.pipeline is not None else f"model    {run / 'model'}"
    say(f"\n{result}\nreport   {page}\nseconds  {time.perf_counter() - begun:.0f}")
    return run


def check(
    loaded: Loaded, structure: Structure, dataset: ImageDataset, goal: Target, settings: Recipe
) -> dict[str, Any] | None:
    """Find what would stop a compression, before long work starts; returns the planned cut (`plan_cut`).

    Raises:
        SecateurError: the recipe does not fit the model, the data or the steps, or the target is out of reach.
    """
    check_recovery(loaded.model, dataset, settings.recovery, loaded.model)
    granularity = granularity_for(goal, settings.cut)
    check_schedule(settings, granularity)
    check_evaluation({"dense": loaded.model, "recovered": loaded.model}, loaded.process, dataset, settings.evaluation)
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

    Weights and Jacobian options that the recipe chose for its own objective do not go over to another.
    """
    named = recipe_named(recipe)
    chosen = replace(named, **given(parts))
    recovery = replace(chosen.recovery, **given({"steps": steps, "objective": objective}))
    if recovery.objective != named.recovery.objective:
        for part in ("weights", "jacobian"):
            if getattr(recovery, part) == getattr(named.recovery, part):
                recovery = replace(recovery, **{part: getattr(RecoveryConfig(), part)})
    seeds = given({"seed": seed})
    return replace(
        chosen,
        scoring=replace(chosen.scoring, **seeds),
        recovery=replace(recovery, **seeds),
        evaluation=replace(chosen.evaluation, **seeds),
    )


def given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in options.items() if value is not None}
