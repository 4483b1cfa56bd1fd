"""`secateur sweep`: several recipes, criteria, objectives, targets and seeds over one model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ..base.console import say
from ..base.distributed import one_process
from ..base.errors import SecateurError, require
from ..base.files import read_json, write_json
from ..base.rules import Count, Seed, checked
from ..evaluation import EvaluationConfig
from ..io.locate import Component
from ..process.named import ProcessName
from ..recovery import WarmupConfig
from ..reporting import TRIALS, write_comparison
from ..runs.folder import run_folder
from ..runs.timing import format_duration, seconds_per_pair
from ..runs.trials import (
    CACHE,
    Bench,
    Trial,
    TrialConfig,
    all_trials,
    attempt,
    is_done,
    open_bench,
    plan_trial,
    recipe_names,
    warm_up,
    warm_up_seconds,
)
from ..schedules import parse_target
from .options import CriterionName, Model


@checked
def sweep(
    model: Model,
    *,
    data: str,
    out: Path,
    targets: tuple[str, ...],
    recipes: tuple[str, ...] = ("all",),
    criteria: tuple[CriterionName, ...] = (),
    objectives: tuple[str, ...] = (),
    seeds: tuple[Seed, ...] = (0,),
    steps: Count | None = None,
    shared: TrialConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    component: Component | None = None,
    process: ProcessName = "auto",
    device: str = "auto",
    dry_run: bool = False,
) -> Path:
    """Compress one model in every combination of recipes, criteria, objectives, targets and seeds, and compare.

    Each trial is a run of compress in OUT/trials, with a report of its own; OUT/report.html compares them. Run the same
    command again to take up a sweep that was stopped, with more recipes, targets or seeds to extend it. A trial that
    fails does not stop the others.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        data: image folder (sub-folders are classes), parquet, datasets:NAME, .npz with images and labels, or digits.
        out: folder of the sweep.
        targets: what stays: macs=50% macs=30% ..., params=20M, blocks=6 (six are left)
            or latency=20ms (one call at batch 1 on this device).
        recipes: named recipes, or all.
        criteria: instead of the recipes' own; those that rank blocks only remove blocks.
        objectives: instead of the recipes' own: denoising, distillation, first-order or 2ndmatch.
        seeds: of scoring and recovery; the spread of the results is over them.
        steps: recovery steps of every trial, instead of the recipes' own.
        shared: what else all trials share, instead of the recipes' own.
        evaluation: what to measure; the samples of all trials come from its seed.
        new_labels: the data's classes replace the model's: fresh label embeddings, trained once before all trials.
        warmup: how the new labels are trained.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        process: how it was trained, instead of the scheduler config beside it:
            ddpm and v-prediction have linear betas of 1000 steps; flow is diffusers' convention, flow-sit SiT's.
        device: auto, cpu, cuda, mps ...
        dry_run: print the trials and their predicted times, and stop.

    Returns:
        The folder of the sweep.

    Raises:
        SecateurError: bad input, no trial that could run, or, after all the others are done, trials that failed.
    """
    one_process("sweep")
    require(len(targets) > 0, "no target was given; give for example --targets macs=50% macs=30%")
    require(len(seeds) > 0, "no seed was given; give for example --seeds 0 1 2")
    shared, evaluation = shared or TrialConfig(), evaluation or EvaluationConfig()
    goals = [parse_target(target) for target in dict.fromkeys(targets)]
    trials = all_trials(recipe_names(recipes), criteria, objectives, goals, seeds, shared, steps, evaluation)
    bench = open_bench(model, data, process, device, component, (warmup or WarmupConfig()) if new_labels else None)
    second = seconds_per_pair(bench.loaded)
    plans = _plan(bench, trials, second)
    if not any(isinstance(plan, float) for plan in plans.values()):
        raise SecateurError(f"no trial can run: {next(iter(plans.values()))}")
    if dry_run:
        _print_plans(plans, warm_up_seconds(bench, shared, second))
        return Path(out)
    places = {"command": "sweep", "model": model, "data": data, "component": component, "process": process}
    with run_folder(
        out,
        {**places, "steps": steps, "warmup": bench.warmup, "shared": shared, "evaluation": evaluation},
        bench.inputs,
    ) as run:
        _run_all(run, warm_up(bench, run, shared), trials, plans)
        shutil.rmtree(run / CACHE, ignore_errors=True)
        page = write_comparison(run)
        say((run / "tables" / "comparison.md").read_text())
        say(f"report  {page}")
        outcomes = {entry["name"]: entry for entry in read_json(run / TRIALS)["trials"]}
        failed = [outcomes[trial.name] for trial in trials if outcomes[trial.name]["status"] == "failed"]
        if failed:
            first = failed[0]
            raise SecateurError(
                f"{len(failed)} of {len(trials)} trials failed, {first['name']} first: {first['reason']}; the others are "  # noqa: E501
                "done, and the same command tries these again"
            )
        return run


def _plan(bench: Bench, trials: list[Trial], second: float) -> dict[str, float | str]:
    """Predicted seconds of every trial by name, or why it cannot run; a ranking that several share counts once."""
    plans: dict[str, float | str] = {}
    ranked = set()
    for trial in trials:
        try:
            stages = plan_trial(bench, trial, second)
        except SecateurError as error:
            plans[trial.name] = str(error)
            continue
        ranking = (trial.settings.criterion, trial.settings.scoring)
        plans[trial.name] = sum(stages.values()) - (stages["rank"] if ranking in ranked else 0)
        ranked.add(ranking)
    return plans


def _print_plans(plans: dict[str, float | str], warm_up: float) -> None:
    if warm_up:
        say(f"{'warm up':48} about {format_duration(warm_up)}")
    for name, plan in plans.items():
        say(f"{name:48} " + (f"about {format_duration(plan)}" if isinstance(plan, float) else f"skipped: {plan}"))
    times = [plan for plan in plans.values() if isinstance(plan, float)]
    say(f"{len(times)} of {len(plans)} trials would run, about {format_duration(warm_up + sum(times))} in all")


def _run_all(run: Path, bench: Bench, trials: list[Trial], plans: dict[str, float | str]) -> None:
    """Run what is not done yet; `trials.json` says after each trial how it and the others stand."""
    path = run / TRIALS
    found = read_json(path)["trials"] if path.is_file() else []
    outcomes: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in found}
    for trial in trials:
        plan = plans[trial.name]
        if isinstance(plan, str):
            say(f"{trial.name}: skipped: {plan}")
        status = {"status": "waiting", "reason": "", "seconds": None}
        if isinstance(plan, str):
            status |= {"status": "skipped", "reason": plan}
        elif is_done(run / "trials" / trial.name):
            status = {"status": "done", "reason": "", "seconds": outcomes.get(trial.name, {}).get("seconds")}
        outcomes[trial.name] = trial.described() | status
    waiting = [trial for trial in trials if outcomes[trial.name]["status"] == "waiting"]
    for number, trial in enumerate(waiting, start=1):
        write_json(path, {"format": 1, "trials": list(outcomes.values())})
        say(f"trial {number} of {len(waiting)}: {trial.name}")
        folders = sorted((run / "trials").glob("*"))
        outcomes[trial.name] |= attempt(bench, trial, run / "trials" / trial.name, folders, run / CACHE)
        if outcomes[trial.name]["status"] == "failed":
            say(f"{trial.name} failed: {outcomes[trial.name]['reason']}")
    write_json(path, {"format": 1, "trials": list(outcomes.values())})
