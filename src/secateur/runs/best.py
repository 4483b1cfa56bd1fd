"""Find the recipe that suits a model by short trials, and compress by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from typing_extensions import Unpack

from ..base.console import shown
from ..base.distributed import is_main_process, require_folder
from ..base.errors import require, require_one_of
from ..base.origin import recorded
from ..base.rows import remove_rows
from ..base.rules import Count, Seed, above, checked
from ..base.sharing import after_main, announced
from ..base.units import format_count, number_of
from ..evaluation import EvaluationConfig
from ..recovery import WarmupConfig
from ..reporting import TRIALS, write_comparison
from ..results import Trials, read_result, write_result
from ..schedules import parse_target
from .arguments import ModelArguments
from .checks import warmup_of
from .comparing import Comparison, folder_or_temporary, read_comparison
from .folder import run_folder
from .search import ScoreName, Searcher, search_of
from .subject import open_subject
from .timing import format_duration
from .trials import CACHE, Bench, TrialConfig, most_bytes, open_bench, prepare, recipe_names


@dataclass(frozen=True)
class SearchPlan:
    """The rounds of a search; prints as lines.

    Attributes:
        trials: the recipes that cannot take part, and the search: its rounds and predicted times.
    """

    searcher: Searcher = field(repr=False)
    trials: Trials

    def __str__(self) -> str:
        search = search_of(self.trials)
        left = search.budget_steps - sum(one.candidates * one.steps for one in search.rounds)
        short = [self.searcher.trial(recipe, search.budget_steps) for recipe in search.recipes]
        return "\n".join(
            [
                f"judged by  {search.judged_by}",
                *(f"skipped    {trial.recipe}: {trial.reason}" for trial in self.trials.trials),
                *(
                    f"round {number}    {number_of(one.candidates, 'recipe')}, {number_of(one.steps, 'step')} each"
                    for number, one in enumerate(search.rounds, start=1)
                ),
                f"winner     {number_of(left, 'step')}",
                f"time       about {format_duration(search.predicted_seconds)}",
                f"memory     about {format_count(most_bytes(self.searcher.bench, short))}B at most",
            ]
        )

    __repr__ = __str__


@recorded
@checked
def best(
    model: Any,
    *,
    target: str,
    data: Any,
    budget_steps: Count | None = None,
    budget_minutes: Annotated[float, above(0)] | None = None,
    recipes: Sequence[str] = ("all",),
    score: ScoreName = "loss",
    seed: Seed = 0,
    shared: TrialConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **arguments: Unpack[ModelArguments],
) -> Comparison | Path:
    """Find the recipe that suits a model at one target, within a budget, and compress by it.

    Half of the budget goes into successive halving: all recipes in short trials, the better half of them in longer
    ones, until one remains. The rest of the budget is spent on a whole compression by that one; with `out` it is in
    OUT/winner, its model in OUT/winner/model, or OUT/winner/pipeline when a pipeline was given. Every trial starts from
    the dense model, so it equals a run of that many steps. Progressive recipes whose stages would not fit into half of
    a trial get shorter stages. The same call resumes a search that was stopped. In several processes, each takes one
    trial after the other on its own device, and the first one compresses by the winner.

    Args:
        model, data: as for `compress`.
        target: the size to reach: macs=50%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at
            batch size 1).
        budget_steps: recovery steps of all trials and the winner together.
        budget_minutes: time of everything together, on all devices; trials get the steps that are predicted to fit,
            the winner the rest.
        recipes: named recipes to choose from, or all.
        score: how trials are compared: loss, the mean denoising loss on the data, or frechet, the Fréchet distance of
            samples. Among recipes within two standard errors of the difference, the fastest is preferred.
        seed: seed of scoring and recovery.
        shared: settings of all trials, which replace the recipes' own.
        evaluation: how to measure the winner; trials compared by the Fréchet distance draw as many samples.
        new_labels: replace the model's classes by the data's: new label embeddings, trained once before the search.
        warmup: how the new labels are trained.
        out: folder of the search. Without it, the search uses a temporary folder, and the winner is then in memory.
        progress: show progress bars and print notes.
        arguments: those of `ModelArguments`.

    Returns:
        With `out` the folder of the search, else the trials, and the whole compression as `.winner`.

    Raises:
        SecateurError: bad input, a budget too small for a search, or no recipe that can run.
    """
    require_folder("best", out)
    with shown(progress), folder_or_temporary(out) as place:
        labels = warmup_of(new_labels, warmup)
        bench = open_bench(open_subject(model, **arguments), data, labels)
        shared, evaluation = shared or TrialConfig(), evaluation or EvaluationConfig()
        names, search = open_search(
            bench, target, recipes, score, seed, shared, evaluation, budget_steps, budget_minutes
        )
        path = place / TRIALS
        begun = None if path.is_file() else search.begin(names, budget_steps, budget_minutes)
        places = {"command": "best", "model": bench.subject.name, "target": str(search.goal), "data": bench.data}
        chosen = {"recipes": names, "score": score, "budget_steps": budget_steps, "budget_minutes": budget_minutes}
        settings = {"seed": seed, **bench.subject.settings, **chosen, "warmup": labels}
        settings |= {"shared": shared, "evaluation": evaluation}
        with run_folder(place, {**places, **settings}, bench.inputs) as run:
            if begun is not None and is_main_process() and not path.is_file():
                write_result(path, begun)  # before the first trial, so that a resumed search keeps its steps
            search = replace(search, bench=after_main(lambda: prepare(bench, run, shared)))
            found = search.find(run, read_result(Trials, path))

            def finish() -> str:
                search.finish(run, found)
                remove_rows(run / CACHE)
                write_comparison(run)
                return ""

            announced(finish)
            return run if out is not None else read_comparison(run, search.bench.subject)


@checked
def plan_best(
    model: Any,
    *,
    target: str,
    data: Any,
    budget_steps: Count | None = None,
    budget_minutes: Annotated[float, above(0)] | None = None,
    recipes: Sequence[str] = ("all",),
    score: ScoreName = "loss",
    seed: Seed = 0,
    shared: TrialConfig | None = None,
    evaluation: EvaluationConfig | None = None,
    new_labels: bool = False,
    warmup: WarmupConfig | None = None,
    **arguments: Unpack[ModelArguments],
) -> SearchPlan:
    """The rounds of `best` with the same arguments, and the time and memory that they would take.

    Raises:
        SecateurError: as `best` would, wherever that is known before it begins.
    """
    bench = open_bench(open_subject(model, for_plan=True, **arguments), data, warmup_of(new_labels, warmup))
    shared, evaluation = shared or TrialConfig(), evaluation or EvaluationConfig()
    names, search = open_search(bench, target, recipes, score, seed, shared, evaluation, budget_steps, budget_minutes)
    return SearchPlan(search, search.begin(names, budget_steps, budget_minutes))


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
    require(
        (budget_steps is None) != (budget_minutes is None),
        "give the budget in recovery steps, --budget-steps, or in minutes, --budget-minutes",
    )
    require_one_of("score", score, ScoreName)
    return recipe_names(recipes), Searcher(bench, parse_target(target), seed, shared, evaluation, score)
