"""Find the recipe that suits a model by short trials, and compress by it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Unpack

from ..base.console import say, shown
from ..base.distributed import one_process
from ..base.errors import require, require_one_of
from ..base.origin import recorded
from ..base.rules import Count, Seed, above, checked
from ..base.units import format_count
from ..evaluation import EvaluationConfig
from ..recovery import WarmupConfig
from ..reporting import TRIALS, write_comparison
from ..results import Trials, read_result, write_result
from ..schedules import parse_target
from .arguments import ModelArguments
from .folder import run_folder
from .search import ScoreName, Searcher, search_of
from .subject import open_subject
from .timing import format_duration
from .trials import CACHE, Bench, TrialConfig, most_bytes, open_bench, recipe_names, warm_up


@recorded
@checked
def best(
    model: Any,
    *,
    target: str,
    data: Any,
    out: str | Path,
    budget_steps: Count | None = None,
    budget_minutes: Annotated[float, above(0)] | None = None,
    recipes: Sequence[str] = ("all",),
    score: ScoreName = "loss",
    seed: Seed = 0,
    shared: TrialConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    progress: bool = False,
    **arguments: Unpack[ModelArguments],
) -> Path:
    """Find the recipe that suits a model at one target, within a budget, and compress by it.

    Half of the budget goes into successive halving: all recipes in short trials, the better half of them in longer
    ones, until one remains. The rest of the budget is spent on a whole compression by that one, in OUT/winner; its
    model is OUT/winner/model, or OUT/winner/pipeline when a pipeline was given. Every trial starts from the dense
    model, so it equals a run of that many steps. Progressive recipes whose stages would not fit into half of a trial
    get shorter stages. The same call resumes a search that was stopped.

    Args:
        model, data: as for `compress`.
        target: the size to reach: macs=50%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at
            batch size 1).
        out: folder of the search.
        budget_steps: recovery steps of all trials and the winner together.
        budget_minutes: time of everything together; trials get the steps that are predicted to fit, the winner the
            rest.
        recipes: named recipes to choose from, or all.
        score: how trials are compared: loss, the mean denoising loss on the data, or frechet, the Fréchet distance of
            samples. Among recipes within two standard errors of the difference, the fastest is preferred.
        seed: seed of scoring and recovery.
        shared: settings of all trials, which replace the recipes' own.
        evaluation: how to measure the winner; trials compared by the Fréchet distance draw as many samples.
        new_labels: replace the model's classes by the data's: new label embeddings, trained once before the search.
        warmup: how the new labels are trained.
        progress: show progress bars and print notes.
        arguments: those of `ModelArguments`.

    Returns:
        The folder of the search.

    Raises:
        SecateurError: bad input, a budget too small for a search, or no recipe that can run.
    """
    with shown(progress):
        labels = (warmup or WarmupConfig()) if new_labels else None
        bench = open_bench(open_subject(model, **arguments), data, labels)
        shared, evaluation = shared or TrialConfig(), evaluation or EvaluationConfig()
        names, search = open_search(
            bench, target, recipes, score, seed, shared, evaluation, budget_steps, budget_minutes
        )
        path = Path(out) / TRIALS
        begun = None if path.is_file() else search.begin(names, budget_steps, budget_minutes)
        places = {"command": "best", "model": bench.subject.name, "target": str(search.goal), "data": bench.data}
        chosen = {"recipes": names, "score": score, "budget_steps": budget_steps, "budget_minutes": budget_minutes}
        settings = {"seed": seed, **bench.subject.settings, **chosen, "warmup": labels}
        settings |= {"shared": shared, "evaluation": evaluation}
        with run_folder(out, {**places, **settings}, bench.inputs) as run:
            if begun is not None and not path.is_file():
                write_result(path, begun)  # before the first trial, so that a resumed search keeps its steps
            search = replace(search, bench=warm_up(bench, run, shared))
            search.finish(run, search.find(run, read_result(Trials, path)))
            shutil.rmtree(run / CACHE, ignore_errors=True)
            write_comparison(run)
            return run


def open_search(
    bench: Bench,
    target: str,
    recipes: Sequence[str],
    score: ScoreName,
    seed: int,
    shared: TrialConfig,
    evaluation: EvaluationConfig,
    budget_steps: int | None,
    budget_minutes: float | None,
) -> tuple[list[str], Searcher]:
    """The candidates and the search among them.

    Raises:
        SecateurError: no budget, or two; an unknown recipe; or a target that cannot be read.
    """
    one_process("best")
    require(
        (budget_steps is None) != (budget_minutes is None),
        "give the budget in recovery steps, --budget-steps, or in minutes, --budget-minutes",
    )
    require_one_of("score", score, ScoreName)
    return recipe_names(recipes), Searcher(bench, parse_target(target), seed, shared, evaluation, score)


def print_search(searcher: Searcher, planned: Trials) -> None:
    """Print the rounds of a search with its predicted time and memory."""
    search = search_of(planned)
    say(f"judged by  {search.judged_by}")
    for trial in planned.trials:
        say(f"skipped    {trial.recipe}: {trial.reason}")
    for number, one in enumerate(search.rounds, start=1):
        say(f"round {number}    {one.candidates} recipes, {one.steps} steps each")
    left = search.budget_steps - sum(one.candidates * one.steps for one in search.rounds)
    say(f"winner     {left} steps\ntime       about {format_duration(search.predicted_seconds)}")
    trials = [searcher.trial(recipe, search.budget_steps) for recipe in search.recipes]
    say(f"memory     about {format_count(most_bytes(searcher.bench, trials))}B at most")
