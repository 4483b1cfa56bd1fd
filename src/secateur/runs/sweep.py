"""A sweep: one model compressed by every combination of recipes, criteria, objectives, targets and seeds."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..base.console import say, shown
from ..base.distributed import one_process
from ..base.errors import SecateurError, require
from ..base.origin import recorded
from ..base.rules import Count, Seed, checked
from ..base.units import format_count
from ..evaluation import EvaluationConfig
from ..recovery import WarmupConfig
from ..reporting import TRIALS, write_comparison
from ..results import Trials, read_result, write_result
from ..schedules import parse_target
from .arguments import ModelArguments
from .folder import run_folder
from .subject import open_subject
from .timing import format_duration, seconds_per_pair
from .trials import (
    CACHE,
    Bench,
    Trial,
    TrialConfig,
    all_trials,
    attempt,
    is_done,
    most_bytes,
    open_bench,
    plan_trial,
    recipe_names,
    warm_up,
    warm_up_seconds,
)


@dataclass(frozen=True)
class Planned:
    """The trials of a sweep, and for each its predicted seconds or why it cannot run."""

    bench: Bench
    trials: list[Trial]
    plans: dict[str, float | str]
    warm_up: float


@recorded
@checked
def sweep(
    model: Any,
    *,
    data: Any,
    out: str | Path,
    targets: Sequence[str],
    recipes: Sequence[str] = ("all",),
    criteria: Sequence[str] = (),
    objectives: Sequence[str] = (),
    seeds: tuple[Seed, ...] = (0,),
    steps: Count | None = None,
    shared: TrialConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    progress: bool = False,
    **arguments: Unpack[ModelArguments],
) -> Path:
    """Compress one model in every combination of recipes, criteria, objectives, targets and seeds, and compare.

    Each trial is a run of `compress` in OUT/trials, with its own report; OUT/report.html compares them. The same call
    resumes a sweep that was stopped; with more recipes, targets or seeds it extends the sweep. A trial that fails does
    not stop the others.

    Args:
        model, data: as for `compress`.
        out: folder of the sweep.
        targets: the sizes to reach: macs=50%, params=20M, blocks=6 (six stay) or latency=20ms (one call at batch size
            1).
        recipes: named recipes, or all.
        criteria: criteria that replace the recipes' own; those that rank blocks only remove blocks.
        objectives: objectives that replace the recipes' own.
        seeds: seeds of scoring and recovery; the reported spread is over them.
        steps: recovery steps of every trial, which replace the recipes' own.
        shared: further settings of all trials, which replace the recipes' own.
        evaluation: what to measure; its seed is that of the samples of all trials.
        new_labels: replace the model's classes by the data's: new label embeddings, trained once before all trials.
        warmup: how the new labels are trained.
        progress: show progress bars and print notes.
        arguments: those of `ModelArguments`.

    Returns:
        The folder of the sweep.

    Raises:
        SecateurError: bad input, no trial can run, or, after all others are done, some trials failed.
    """
    with shown(progress):
        subject = open_subject(model, **arguments)
        labels = (warmup or WarmupConfig()) if new_labels else None
        shared, evaluation = shared or TrialConfig(), evaluation or EvaluationConfig()
        planned = plan_sweep(
            open_bench(subject, data, labels), targets, recipes, criteria, objectives, seeds, steps, shared, evaluation
        )
        bench, trials = planned.bench, planned.trials
        places = {"command": "sweep", "model": subject.name, "data": bench.data, **subject.settings}
        settings = {"steps": steps, "warmup": labels, "shared": shared, "evaluation": evaluation}
        with run_folder(out, {**places, **settings}, bench.inputs) as run:
            _run_all(run, warm_up(bench, run, shared), trials, planned.plans)
            shutil.rmtree(run / CACHE, ignore_errors=True)
            write_comparison(run)
            _require_done(run, trials)
            return run


def _require_done(run: Path, trials: list[Trial]) -> None:
    names = {trial.name for trial in trials}
    found = read_result(Trials, run / TRIALS).trials
    failed = [outcome for outcome in found if outcome.name in names and outcome.status == "failed"]
    if failed:
        raise SecateurError(
            f"{len(failed)} of {len(trials)} trials failed, {failed[0].name} first: {failed[0].reason}; the others are "
            "done, and the same command tries these again"
        )


def plan_sweep(
    bench: Bench,
    targets: Sequence[str],
    recipes: Sequence[str],
    criteria: Sequence[str],
    objectives: Sequence[str],
    seeds: Sequence[int],
    steps: int | None,
    shared: TrialConfig,
    evaluation: EvaluationConfig,
) -> Planned:
    """The trials and their predicted times; a ranking that several share counts once.

    Raises:
        SecateurError: there is no trial, or none can run.
    """
    one_process("sweep")
    require(len(targets) > 0, "no target was given; give for example --targets macs=50% macs=30%")
    require(len(seeds) > 0, "no seed was given; give for example --seeds 0 1 2")
    goals = [parse_target(target) for target in dict.fromkeys(targets)]
    trials = all_trials(recipe_names(recipes), criteria, objectives, goals, seeds, shared, steps, evaluation)
    second = seconds_per_pair(bench.subject)
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
    if not any(isinstance(plan, float) for plan in plans.values()):
        raise SecateurError(f"no trial can run: {next(iter(plans.values()))}")
    return Planned(bench, trials, plans, warm_up_seconds(bench, shared, second))


def print_sweep(planned: Planned) -> None:
    """Print the trials with their predicted times."""
    if planned.warm_up:
        say(f"{'warm up':48} about {format_duration(planned.warm_up)}")
    for name, plan in planned.plans.items():
        say(f"{name:48} " + (f"about {format_duration(plan)}" if isinstance(plan, float) else f"skipped: {plan}"))
    times = [plan for plan in planned.plans.values() if isinstance(plan, float)]
    whole = format_duration(planned.warm_up + sum(times))
    say(f"{len(times)} of {len(planned.plans)} trials would run, about {whole} in all")
    runnable = [trial for trial in planned.trials if isinstance(planned.plans[trial.name], float)]
    say(f"memory: about {format_count(most_bytes(planned.bench, runnable))}B at most")


def _run_all(run: Path, bench: Bench, trials: list[Trial], plans: dict[str, float | str]) -> None:
    """Run the trials that are not done yet; `trials.json` is updated after each."""
    path = run / TRIALS
    found = read_result(Trials, path).trials if path.is_file() else ()
    outcomes = {outcome.name: outcome for outcome in found}
    for trial in trials:
        plan = plans[trial.name]
        if isinstance(plan, str):
            say(f"{trial.name}: skipped: {plan}")
        before, outcome = outcomes.get(trial.name), trial.waiting
        if isinstance(plan, str):
            outcome = replace(outcome, status="skipped", reason=plan)
        elif is_done(run / "trials" / trial.name):
            outcome = replace(outcome, status="done", seconds=before.seconds if before is not None else None)
        outcomes[trial.name] = outcome
    waiting = [trial for trial in trials if outcomes[trial.name].status == "waiting"]
    for number, trial in enumerate(waiting, start=1):
        write_result(path, Trials(tuple(outcomes.values())))
        say(f"trial {number} of {len(waiting)}: {trial.name}")
        folders = sorted((run / "trials").glob("*"))
        outcomes[trial.name] = attempt(bench, trial, run / "trials" / trial.name, folders, run / CACHE)
        if outcomes[trial.name].status == "failed":
            say(f"{trial.name} failed: {outcomes[trial.name].reason}")
    write_result(path, Trials(tuple(outcomes.values())))
