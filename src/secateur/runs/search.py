"""A search for the recipe that suits a model: short trials, of which the better half goes on."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..base.console import say
from ..base.errors import SecateurError, require
from ..base.files import write_json
from ..criteria import ScoringConfig
from ..evaluation import EvaluationConfig, FrechetOptions, plan_evaluation
from ..evaluation.metrics.loss import denoising_loss_per_timestep
from ..reporting import TRIALS, read_run
from ..results import Evaluation, read_result
from ..schedules import Target
from .halving import Round, Score, check_rounds, order, rounds_of, score_of, tied
from .stages import calibration, pipeline_stage, reopened
from .timing import format_duration, seconds_per_pair
from .trials import CACHE, Bench, Trial, TrialConfig, attempt, is_done, make_trial, plan_trial, warm_up_seconds

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
    "of recipes within two standard errors of the difference, the one whose trials are predicted to take least time goes "  # noqa: E501
    "first"
)


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
        second = seconds_per_pair(self.bench.loaded)
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
            "predicted_seconds": fixed + steps * a_step,
            "predicted_trial_seconds": {name: sum(stages.values()) for name, stages in trials.items()},
            "trials": skipped,
        }

    def _check_features(self) -> None:
        """Find that there is no Fréchet distance to judge by, before any trial."""
        model = self.bench.loaded.model
        judged = replace(self.evaluation, metrics=("frechet",))
        try:
            plan_evaluation({"dense": model}, self.bench.loaded.process, self.bench.dataset, judged)
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
        loaded = self.bench.loaded
        model = reopened(folder / "model", loaded)
        losses = []
        for place in range(SCORE_BATCHES):
            chosen = ScoringConfig(num_images=SCORE_BATCH, seed=self.seed + place)
            batch = calibration(loaded, self.bench.dataset, chosen)
            losses.append(
                denoising_loss_per_timestep(model, loaded.process, batch, seed=self.seed + place)[1].mean().item()
            )
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
        pipeline_stage(folder, self.bench.loaded)

    def _steps_left(self, run: Path, found: dict[str, Any]) -> int:
        """Of the budget; in minutes, at least as many as the winner had in its last trial."""
        plan = found["search"]
        done = [entry for entry in found["trials"] if entry["status"] == "done"]
        if plan["budget_seconds"] is None or not done:
            return plan["budget_steps"] - sum(entry["steps"] for entry in done)
        last = [entry for entry in done if entry["recipe"] == plan["winner"]][-1]
        took = read_run(run / "trials" / last["name"]).recovery.seconds or 0.0
        trial = make_trial(plan["winner"], self.goal, self.seed, self.shared, evaluation=self.evaluation)
        measuring = plan_trial(self.bench, trial, seconds_per_pair(self.bench.loaded))["sample"]
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


def _print_plan(plan: dict[str, Any]) -> None:
    say(f"judged by  {plan['judged_by']}")
    for entry in plan["trials"]:
        say(f"skipped    {entry['recipe']}: {entry['reason']}")
    for number, one in enumerate(plan["rounds"], start=1):
        say(f"round {number}    {one['candidates']} recipes, {one['steps']} steps each")
    left = plan["budget_steps"] - sum(one["candidates"] * one["steps"] for one in plan["rounds"])
    say(f"winner     {left} steps\ntime       about {format_duration(plan['predicted_seconds'])}")
