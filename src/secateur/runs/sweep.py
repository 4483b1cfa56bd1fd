"""A sweep: one model compressed by every combination of recipes, criteria, objectives, targets and seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..base.console import say, shown
from ..base.distributed import is_main_process, require_folder
from ..base.errors import SecateurError, require
from ..base.origin import recorded
from ..base.rows import remove_rows
from ..base.rules import Count, Seed, checked
from ..base.sharing import after_main, announced, share_out
from ..base.units import format_count, number_of
from ..evaluation import EvaluationConfig
from ..recovery import WarmupConfig
from ..recovery.objectives import objective_named
from ..recovery.reading import contents_of
from ..reporting import TRIALS, write_comparison
from ..results import TrialResult, Trials, from_json, read_result, to_json, write_result
from ..schedules import parse_target
from .arguments import ModelArguments
from .checks import warmup_of
from .comparing import Comparison, folder_or_temporary, read_comparison
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
    prepare,
    recipe_names,
    warm_up_seconds,
)


@dataclass(frozen=True)
class SweepPlan:
    """The trials of a sweep; prints as lines.

    Attributes:
        trials: every trial.
        seconds: by the name of the trial, its predicted seconds, or why it cannot run.
        warm_up: predicted seconds of training new labels before all trials.
    """

    bench: Bench = field(repr=False)
    trials: tuple[Trial, ...]
    seconds: Mapping[str, float | str]
    warm_up: float

    def __str__(self) -> str:
        lines = [f"{'warm up':48} about {format_duration(self.warm_up)}"] if self.warm_up else []
        for name, each in self.seconds.items():
            lines.append(
                f"{name:48} " + (f"about {format_duration(each)}" if isinstance(each, float) else f"skipped: {each}")
            )
        times = [seconds for seconds in self.seconds.values() if isinstance(seconds, float)]
        whole = format_duration(self.warm_up + sum(times))
        lines.append(f"{len(times)} of {number_of(len(self.seconds), 'trial')} would run, about {whole} in all")
        runnable = [trial for trial in self.trials if isinstance(self.seconds[trial.name], float)]
        return "\n".join([*lines, f"memory: about {format_count(most_bytes(self.bench, runnable))}B at most"])

    __repr__ = __str__


@recorded
@checked
def sweep(
    model: Any,
    *,
    data: Any,
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
    out: str | Path | None = None,
    progress: bool = False,
    **arguments: Unpack[ModelArguments],
) -> Comparison | Path:
    """Compress one model in every combination of recipes, criteria, objectives, targets and seeds, and compare.

    With `out`, each trial is a run of `compress` in OUT/trials, with its own report, and OUT/report.html compares them.
    The same call resumes a sweep that was stopped; with more recipes, targets or seeds it extends the sweep. A trial
    that fails does not stop the others. In several processes, each takes one trial after the other on its own device.

    Args:
        model, data: as for `compress`.
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
        out: folder of the sweep. Without it, trials use a temporary folder and are then in memory, all of them at once.
        progress: show progress bars and print notes.
        arguments: those of `ModelArguments`.

    Returns:
        With `out` the folder of the sweep, else the trials and the runs.

    Raises:
        SecateurError: bad input, no trial can run, or, after all others are done, some trials failed.
    """
    shared, evaluation = shared or TrialConfig(), evaluation or EvaluationConfig()
    labels = warmup_of(new_labels, warmup)
    require_folder("sweep", out)
    with shown(progress), folder_or_temporary(out) as place:
        bench = open_bench(open_subject(model, **arguments), data, labels)
        plan = planned_trials(bench, targets, recipes, criteria, objectives, seeds, steps, shared, evaluation)
        places = {"command": "sweep", "model": bench.subject.name, "data": bench.data, **bench.subject.settings}
        settings = {"steps": steps, "warmup": labels, "shared": shared, "evaluation": evaluation}
        with run_folder(place, {**places, **settings}, bench.inputs) as run:
            bench = after_main(lambda: prepare(bench, run, shared))
            _run_all(run, bench, plan)
            if is_main_process():
                remove_rows(run / CACHE)
                write_comparison(run)
            announced(str)  # the others return when the report is there
            _require_done(run, plan.trials)
            return run if out is not None else read_comparison(run, bench.subject)


@checked
def plan_sweep(
    model: Any,
    *,
    data: Any,
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
    **arguments: Unpack[ModelArguments],
) -> SweepPlan:
    """The trials of `sweep` with the same arguments, and the time and memory that they would take.

    Raises:
        SecateurError: bad input, or no trial can run.
    """
    shared, evaluation = shared or TrialConfig(), evaluation or EvaluationConfig()
    bench = open_bench(open_subject(model, for_plan=True, **arguments), data, warmup_of(new_labels, warmup))
    return planned_trials(bench, targets, recipes, criteria, objectives, seeds, steps, shared, evaluation)


def _require_done(run: Path, trials: Sequence[Trial]) -> None:
    names = {trial.name for trial in trials}
    found = read_result(Trials, run / TRIALS).trials
    failed = [outcome for outcome in found if outcome.name in names and outcome.status == "failed"]
    if failed:
        raise SecateurError(
            f"{len(failed)} of {number_of(len(trials), 'trial')} failed, {failed[0].name} first: {failed[0].reason}; "
            "the others are done, and the same command tries these again"
        )


def planned_trials(
    bench: Bench,
    targets: Sequence[str],
    recipes: Sequence[str],
    criteria: Sequence[str],
    objectives: Sequence[str],
    seeds: Sequence[int],
    steps: int | None,
    shared: TrialConfig,
    evaluation: EvaluationConfig,
) -> SweepPlan:
    """The trials and their predicted times; a ranking or a book that several share counts once.

    Raises:
        SecateurError: there is no trial, or none can run; or there is no recipe, criterion or objective of a name.
    """
    require(len(targets) > 0, "no target was given; give for example --targets macs=50% macs=30%")
    require(len(seeds) > 0, "no seed was given; give for example --seeds 0 1 2")
    goals = [parse_target(target) for target in dict.fromkeys(targets)]
    saved = evaluation.frechet.save_statistics
    require(saved is None, f"every trial would write its statistics over those of the others in {saved}; leave it out")
    for objective in objectives:
        objective_named(objective)
    trials = all_trials(recipe_names(recipes), criteria, objectives, goals, seeds, shared, steps, evaluation)
    second = seconds_per_pair(bench.subject)
    plans: dict[str, float | str] = {}
    counted: set[tuple[str, str]] = set()
    for trial in trials:
        try:
            stages = plan_trial(bench, trial, second)
        except SecateurError as error:
            plans[trial.name] = str(error)
            continue
        settings = trial.settings
        book = (settings.book, contents_of(settings.recovery))
        shared_by = {"rank": repr((settings.criterion, settings.scoring)), "record": repr(book)}
        made = {stage: (stage, shared_by.get(stage, trial.name)) for stage in stages}
        plans[trial.name] = sum(seconds for stage, seconds in stages.items() if made[stage] not in counted)
        counted.update(made.values())
    if not any(isinstance(plan, float) for plan in plans.values()):
        raise SecateurError(f"no trial can run: {next(iter(plans.values()))}")
    return SweepPlan(bench, tuple(trials), plans, warm_up_seconds(bench, shared, second))


def _run_all(run: Path, bench: Bench, plan: SweepPlan) -> None:
    """Run the trials that are not done yet; `trials.json` is updated after each."""
    outcomes: dict[str, TrialResult] = {}

    def begin() -> str:
        outcomes.update(_standing(run, plan))
        write_result(run / TRIALS, Trials(tuple(outcomes.values())))
        return json.dumps([name for name, outcome in outcomes.items() if outcome.status == "waiting"])

    names = json.loads(announced(begin))
    waiting = [trial for trial in plan.trials if trial.name in names]

    def work(trial: Trial) -> str:
        say(f"trial {waiting.index(trial) + 1} of {len(waiting)}: {trial.name}")
        folders = sorted((run / "trials").glob("*"))
        return json.dumps(to_json(attempt(bench, trial, run / "trials" / trial.name, folders, run / CACHE)))

    def collect(said: str) -> None:
        outcome = from_json(TrialResult, json.loads(said), "a trial")
        outcomes[outcome.name] = outcome
        if outcome.status == "failed":
            say(f"{outcome.name} failed: {outcome.reason}")
        write_result(run / TRIALS, Trials(tuple(outcomes.values())))

    share_out(waiting, work, collect)


def _standing(run: Path, plan: SweepPlan) -> dict[str, TrialResult]:
    """What is known of every trial before any is run, those of earlier calls included."""
    path = run / TRIALS
    found = read_result(Trials, path).trials if path.is_file() else ()
    outcomes = {outcome.name: outcome for outcome in found}
    for trial in plan.trials:
        seconds = plan.seconds[trial.name]
        before, outcome = outcomes.get(trial.name), trial.waiting
        if isinstance(seconds, str):
            say(f"{trial.name}: skipped: {seconds}")
            outcome = replace(outcome, status="skipped", reason=seconds)
        elif is_done(run / "trials" / trial.name):
            outcome = replace(outcome, status="done", seconds=before.seconds if before is not None else None)
        outcomes[trial.name] = outcome
    return outcomes
