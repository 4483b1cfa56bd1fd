"""A search for the recipe that suits a model: short trials, of which the better half goes on."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from typing_extensions import Unpack

from ..base.console import say, shown
from ..base.distributed import one_process
from ..base.errors import SecateurError, require, require_one_of
from ..base.files import read_json, write_json
from ..base.rules import Count, Seed, above, checked
from ..base.seeds import Purpose, torch_seed
from ..criteria import ScoringConfig
from ..evaluation import EvaluationConfig, FrechetOptions, plan_evaluation
from ..evaluation.metrics.loss import denoising_loss_per_timestep
from ..recovery import WarmupConfig
from ..reporting import TRIALS, read_run, write_comparison
from ..results import Evaluation, read_result
from ..schedules import Target, parse_target
from .arguments import ModelArguments
from .folder import run_folder
from .halving import Round, Score, check_rounds, order, rounds_of, score_of, tied
from .stages import calibration, pipeline_stage, reopened
from .subject import open_subject
from .timing import format_duration, seconds_per_pair
from .trials import (
    CACHE,
    Bench,
    Trial,
    TrialConfig,
    attempt,
    is_done,
    make_trial,
    open_bench,
    plan_trial,
    recipe_names,
    warm_up,
    warm_up_seconds,
)

ScoreName = Literal["loss", "frechet"]


PROBE = 10_000  # steps over which the time of one is predicted


SCORE_BATCHES = 16  # of images, the same for all candidates


SCORE_BATCH = 16


RULES = {
    "loss": f"the mean loss over {SCORE_BATCHES} batches of {SCORE_BATCH} images, the same images, noise and "
    "timesteps for all",
    "frechet": "the Fréchet distance of samples to the data",
}


TIES = (
    "of recipes within two standard errors of the difference, the one whose trials are predicted to take least time "
    "goes first"
)


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
    ones, until one remains. What the trials did not take is spent on a whole compression by that one, OUT/winner,
    whose model is OUT/winner/model, or OUT/winner/pipeline when a pipeline was given. Every trial starts anew, so it is
    what a run of that many steps gives. Progressive recipes whose stages would not fit into half of a trial are given
    shorter ones. The same call takes up a search that was stopped.

    Args:
        model, data: as of `compress`.
        target: what stays: macs=50%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at batch 1).
        out: folder of the search.
        budget_steps: recovery steps in all, of the trials and of the winner.
        budget_minutes: time in all; trials get the steps that are predicted to fit, the winner what then remains.
        recipes: named recipes to choose from, or all.
        score: what judges the trials: loss, the mean denoising loss on the data, or frechet, the Fréchet distance of
            samples. Of recipes within two standard errors of the difference, the one that took least time goes first.
        seed: of scoring and recovery.
        shared: what all trials share, instead of the recipes' own.
        evaluation: what to measure of the winner; trials by the Fréchet distance draw as many samples.
        new_labels: the data's classes replace the model's: fresh label embeddings, trained once before the search.
        warmup: how the new labels are trained.
        progress: show how far it is.
        arguments: as `ModelArguments` has them.

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
                write_json(path, begun)  # before the first trial: a search that is taken up keeps its steps
            found = read_json(path)
            search = replace(search, bench=warm_up(bench, run, shared))
            search.find(run, found)
            search.finish(run, found)
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
) -> tuple[list[str], Search]:
    """The candidates and the search among them.

    Raises:
        SecateurError: a budget that is none, an unknown recipe, or a target that cannot be read.
    """
    one_process("best")
    require(
        (budget_steps is None) != (budget_minutes is None),
        "give the budget in recovery steps, --budget-steps, or in minutes, --budget-minutes",
    )
    require_one_of("score", score, ScoreName)
    return recipe_names(recipes), Search(bench, parse_target(target), seed, shared, evaluation, score)


@dataclass(frozen=True)
class Search:
    """A search for the recipe that suits a model at one target."""

    bench: Bench
    goal: Target
    seed: int
    shared: TrialConfig
    evaluation: EvaluationConfig
    score: ScoreName

    def trial(self, recipe: str, steps: int) -> Trial:
        """A short trial, of which only the score is measured."""
        frechet = FrechetOptions(self.evaluation.frechet.statistics if self.score == "frechet" else None)
        measured = replace(self.evaluation, metrics=(self.score,), frechet=frechet)
        made = make_trial(recipe, self.goal, self.seed, self.shared, steps=steps, evaluation=measured)
        return _fit_stages(made)

    def begin(self, names: list[str], budget_steps: int | None, budget_minutes: float | None) -> dict[str, Any]:
        """What `trials.json` says before the first trial."""
        plan = self.plan(names, budget_steps, budget_minutes)
        return {"format": 1, "trials": plan.pop("trials"), "search": plan}

    def plan(self, names: list[str], budget_steps: int | None, budget_minutes: float | None) -> dict[str, Any]:
        """The rounds, the predicted seconds, and the recipes that cannot take part.

        Raises:
            SecateurError: no recipe can, the budget is too small, or nothing could tell the trials apart.
        """
        if self.score == "frechet":
            self._check_features()
        second = seconds_per_pair(self.bench.subject)
        skipped: list[dict[str, Any]] = []
        times = self._times(names, budget_steps or PROBE, second, skipped)
        recovering = sum(stages["recover"] for stages in times.values()) / len(times)
        a_step = recovering / (budget_steps or PROBE)
        warm_up = warm_up_seconds(self.bench, self.shared, second)
        fixed = warm_up + sum(sum(stages.values()) - stages["recover"] for stages in times.values())
        steps = budget_steps
        if steps is None:
            steps = int((60 * (budget_minutes or 0.0) - fixed) / a_step)
            require(
                steps > 0,
                f"{budget_minutes:g} minutes are too few: ranking and measuring alone take about "
                f"{format_duration(fixed)}; give more, or fewer --shared.num-timesteps or --shared.num-images",
            )
        rounds = rounds_of(len(times), steps)
        trials = times
        while rounds and len(trials := self._times(list(times), max(rounds[0].steps, 1), second, skipped)) < len(times):
            times, rounds = trials, rounds_of(len(trials), steps)
        check_rounds(rounds, steps)
        return {
            "recipes": list(times),
            "score": self.score,
            "judged_by": RULES[self.score],
            "ties": TIES,
            "budget_steps": steps,
            "budget_seconds": None if budget_minutes is None else 60 * budget_minutes,
            "warm_up_seconds": warm_up,
            "rounds": [asdict(one) for one in rounds],
            "predicted_trial_seconds": {name: sum(stages.values()) for name, stages in trials.items()},
            "predicted_seconds": fixed + steps * a_step,
            "trials": skipped,
        }

    def _check_features(self) -> None:
        """Find that there is no Fréchet distance to judge by, before any trial."""
        subject, judged = self.bench.subject, replace(self.evaluation, metrics=("frechet",))
        try:
            plan_evaluation({"dense": subject.model}, subject.process, self.bench.dataset, judged)
        except SecateurError as error:
            raise SecateurError(f"no frechet: {error}; or use --score loss") from error

    def _times(
        self, names: list[str], steps: int, second: float, skipped: list[dict[str, Any]]
    ) -> dict[str, dict[str, float]]:
        """Predicted seconds of trials of so many steps; adds the recipes that cannot run to `skipped`.

        Raises:
            SecateurError: none can.
        """
        times = {}
        for name in names:
            trial = self.trial(name, steps)
            try:
                times[name] = plan_trial(self.bench, trial, second)
            except SecateurError as error:
                skipped.append(trial.described() | {"rung": 0, "status": "skipped", "reason": str(error)})
        if not times:
            raise SecateurError(f"no recipe can run: {skipped[0]['reason']}")
        return times

    def find(self, run: Path, found: dict[str, Any]) -> None:
        """Run the rounds that are not done yet; `trials.json` says after each trial how the search stands."""
        plan = found["search"]
        candidates = plan["recipes"]
        for rung, one in enumerate(Round(**entry) for entry in plan["rounds"]):
            for place, recipe in enumerate(candidates, start=1):
                number = f"round {rung + 1} of {len(plan['rounds'])}, {place} of {len(candidates)}"
                say(f"{number}: {recipe}, {one.steps} steps")
                self._try(run, found, rung, self.trial(recipe, one.steps))
            entries = [entry for entry in found["trials"] if entry.get("rung") == rung and entry.get("score")]
            if not entries:
                raise SecateurError(f"every trial of round {rung + 1} failed; see {run / TRIALS}")
            scores = {entry["recipe"]: _score(entry) for entry in entries}
            ranked = order(scores, plan["predicted_trial_seconds"])
            kept = plan["rounds"][rung + 1]["candidates"] if rung + 1 < len(plan["rounds"]) else 1
            for entry in entries:
                at = ranked.index(entry["recipe"])
                tie = " (tied)" if at and tied(_score(entry), scores[ranked[0]]) else ""
                last = kept == 1
                entry["verdict"] = ("won" if last else "goes on") + tie if at < kept else "left" + tie
            candidates = ranked[:kept]
            write_json(run / TRIALS, found)
        plan["winner"] = candidates[0]

    def _try(self, run: Path, found: dict[str, Any], rung: int, trial: Trial) -> None:
        """Run and score one trial, unless that is done."""
        name = f"round-{rung + 1}_{trial.name}"
        before = next((entry for entry in found["trials"] if entry["name"] == name), None)
        if before is not None and before["status"] == "done":
            return
        if before is not None:
            found["trials"].remove(before)
        folder = run / "trials" / name
        others = sorted(other for other in (run / "trials").glob("*") if other != folder)
        outcome = attempt(self.bench, trial, folder, others, run / CACHE, report=False)
        entry = trial.described() | {"name": name, "rung": rung} | outcome
        if entry["status"] == "done":
            score = self._measure(folder)
            if math.isfinite(score.value):
                entry["score"] = asdict(score)
            else:
                entry |= {"status": "failed", "reason": "its score is not finite"}
            shutil.rmtree(folder / "recovery" / "checkpoints", ignore_errors=True)  # the trial never goes on
        if entry["status"] == "failed":
            say(f"{name} failed: {entry['reason']}")
        found["trials"].append(entry)
        write_json(run / TRIALS, found)

    def _measure(self, folder: Path) -> Score:
        """The score of a trial's final model."""
        if self.score == "frechet":
            evaluation = read_result(Evaluation, folder / "evaluation" / "evaluation.json")
            distance = evaluation.final.estimates.get("fd")
            return Score(math.nan, None) if distance is None else Score(distance.value, distance.std)
        subject = self.bench.subject
        model = reopened(folder / "model", subject)
        losses = []
        for place in range(SCORE_BATCHES):
            seed = torch_seed(self.seed, Purpose.JUDGEMENT, index=place)
            chosen = ScoringConfig(num_images=SCORE_BATCH, seed=seed)
            batch = calibration(subject, self.bench.dataset, chosen)
            losses.append(denoising_loss_per_timestep(model, subject.process, batch, seed=seed)[1].mean().item())
        return score_of(losses)

    def finish(self, run: Path, found: dict[str, Any]) -> None:
        """Spend what is left of the budget on the winner, and say what was found."""
        plan, folder = found["search"], run / "winner"
        if "winner_steps" not in plan:
            plan["winner_steps"] = self._steps_left(run, found)
            plan["sentences"] = _sentences(found)
            write_json(run / TRIALS, found)
        steps, recipe = plan["winner_steps"], plan["winner"]
        made = make_trial(recipe, self.goal, self.seed, self.shared, steps=steps, evaluation=self.evaluation)
        trial = _fit_stages(made)
        if not is_done(folder):
            say(f"winner: {recipe}, {steps} steps")
            found["trials"] = [entry for entry in found["trials"] if entry["name"] != "winner"]
            outcome = attempt(self.bench, trial, folder, sorted((run / "trials").glob("*")), run / CACHE)
            found["trials"].append(trial.described() | {"name": "winner", "folder": "winner"} | outcome)
            write_json(run / TRIALS, found)
            if outcome["status"] != "done":
                raise SecateurError(f"the winner, {recipe}, failed: {outcome['reason']}; the same command tries again")
        pipeline_stage(folder, self.bench.subject, reopened(folder / "model", self.bench.subject))

    def _steps_left(self, run: Path, found: dict[str, Any]) -> int:
        """Of the budget; in minutes, at least as many as the winner had in its last trial."""
        plan = found["search"]
        done = [entry for entry in found["trials"] if entry["status"] == "done"]
        if plan["budget_seconds"] is None or not done:
            return plan["budget_steps"] - sum(entry["steps"] for entry in done)
        last = [entry for entry in done if entry["recipe"] == plan["winner"]][-1]
        took = read_run(run / "trials" / last["name"]).recovery.seconds or 0.0
        trial = make_trial(plan["winner"], self.goal, self.seed, self.shared, evaluation=self.evaluation)
        measuring = plan_trial(self.bench, trial, seconds_per_pair(self.bench.subject))["sample"]
        warm_up = plan.get("warm_up_seconds", 0.0)  # searches that an older version began have none
        left = plan["budget_seconds"] - sum(entry["seconds"] for entry in done) - measuring - warm_up
        return max(last["steps"], int(left / took * last["steps"]))


def _fit_stages(trial: Trial) -> Trial:
    """The trial with progressive stages that take no more than half of its steps."""
    settings = trial.settings
    fitting = settings.recovery.steps // (2 * settings.progressive.last_stage)
    if settings.schedule != "progressive" or fitting >= settings.progressive.stage_steps:
        return trial
    shorter = replace(settings.progressive, stage_steps=max(fitting, 1))
    return replace(trial, settings=replace(settings, progressive=shorter))


def _score(entry: dict[str, Any]) -> Score:
    return Score(**{**entry["score"], "parts": tuple(entry["score"]["parts"])})


def _sentences(found: dict[str, Any]) -> list[str]:
    """What was tried, what won, and by which rule."""
    plan = found["search"]
    last = [entry for entry in found["trials"] if entry.get("rung") == len(plan["rounds"]) - 1 and entry.get("score")]
    if not last:
        return [f"{plan['winner']} was the only recipe that could run, so nothing was searched."]
    scores = {entry["recipe"]: _score(entry) for entry in last}
    winner = scores.pop(plan["winner"])
    spent = sum(entry["steps"] for entry in found["trials"] if entry["status"] == "done")
    against = [
        f"{name} {score.value:.4g} ({'tied' if tied(winner, score) else 'clearly different'})"
        for name, score in scores.items()
    ]
    beaten = f", against {', '.join(against)}" if against else ""
    rounds = f"{len(plan['rounds'])} round{'s' * (len(plan['rounds']) > 1)}"
    return [
        f"{plan['winner']} won: {winner.value:.4g}{beaten}.",
        f"{len(plan['recipes'])} recipes were tried in {rounds} with {spent} recovery steps; the "
        f"winner had {plan['winner_steps']}.",
        f"They were judged by {plan['judged_by']}; {plan['ties']}.",
    ]


def print_search(plan: dict[str, Any]) -> None:
    say(f"judged by  {plan['judged_by']}")
    for entry in plan["trials"]:
        say(f"skipped    {entry['recipe']}: {entry['reason']}")
    for number, one in enumerate(plan["rounds"], start=1):
        say(f"round {number}    {one['candidates']} recipes, {one['steps']} steps each")
    left = plan["budget_steps"] - sum(one["candidates"] * one["steps"] for one in plan["rounds"])
    say(f"winner     {left} steps\ntime       about {format_duration(plan['predicted_seconds'])}")
