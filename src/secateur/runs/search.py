"""A search for the recipe that suits a model: short trials, then longer ones of the better half."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..base.console import quiet, say
from ..base.distributed import is_main_process
from ..base.errors import SecateurError, require
from ..base.seeds import Purpose, torch_seed
from ..base.sharing import announced, share_out
from ..base.units import number_of
from ..criteria import ScoringConfig
from ..evaluation import EvaluationConfig, FrechetOptions, plan_evaluation
from ..evaluation.metrics.loss import denoising_loss_per_timestep
from ..reporting import TRIALS, read_run, write_report
from ..results import Evaluation, Score, Search, TrialResult, Trials, from_json, read_result, to_json, write_result
from ..schedules import Target
from .halving import check_rounds, order, rounds_of, score_of, tied
from .stages import calibration, pipeline_stage, reopened
from .tidy import tidy
from .timing import format_duration, seconds_per_pair
from .trials import CACHE, Bench, Trial, TrialConfig, attempt, is_done, make_trial, plan_trial, warm_up_seconds

ScoreName = Literal["loss", "frechet"]
PROBE = 10_000  # steps of a run whose predicted time gives that of one step
SCORE_BATCHES = 16  # batches of images, the same for all candidates
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
WINNER = "winner"


@dataclass(frozen=True)
class Searcher:
    """Searches for the recipe that suits a model at one target; its progress is in `Trials`.

    Attributes:
        bench: the model and the data.
        goal: the target.
        seed: seed of scoring and recovery.
        shared: settings of all trials.
        evaluation: how the winner is measured.
        score: how trials are compared.
    """

    bench: Bench
    goal: Target
    seed: int
    shared: TrialConfig
    evaluation: EvaluationConfig
    score: ScoreName

    def trial(self, recipe: str, steps: int) -> Trial:
        """A short trial, whose score alone is measured."""
        frechet = FrechetOptions(self.evaluation.frechet.statistics if self.score == "frechet" else None)
        measured = replace(self.evaluation, metrics=(self.score,), frechet=frechet)
        made = make_trial(recipe, self.goal, self.seed, self.shared, steps=steps, evaluation=measured)
        return _fit_stages(made)

    def begin(self, names: Sequence[str], budget_steps: int | None, budget_minutes: float | None) -> Trials:
        """The rounds, the predicted seconds, and the recipes that cannot take part.

        Raises:
            SecateurError: no recipe can, the budget is too small, or the trials could not be compared.
        """
        if self.score == "frechet":
            self._check_features()
        second = seconds_per_pair(self.bench.subject)
        skipped: list[TrialResult] = []
        times = self._times(names, budget_steps or PROBE, second, skipped)
        by_steps = {name: stages["recover"] + stages.get("record", 0.0) for name, stages in times.items()}
        a_step = sum(by_steps.values()) / len(times) / (budget_steps or PROBE)
        warm_up = warm_up_seconds(self.bench, self.shared, second)
        fixed = warm_up + sum(sum(stages.values()) - by_steps[name] for name, stages in times.items())
        steps = budget_steps
        if steps is None:
            steps = int((60 * (budget_minutes or 0.0) - fixed) / a_step)
            require(
                steps > 0,
                f"a budget of {budget_minutes:g} min is too small: ranking and measuring alone take about "
                f"{format_duration(fixed)}; give more, or fewer --shared.num-timesteps or --shared.num-images",
            )
        rounds = rounds_of(len(times), steps)
        trials = times
        while rounds and len(trials := self._times(list(times), max(rounds[0].steps, 1), second, skipped)) < len(times):
            times, rounds = trials, rounds_of(len(trials), steps)
        check_rounds(rounds, steps)
        search = Search(
            recipes=tuple(times),
            score=self.score,
            judged_by=RULES[self.score],
            ties=TIES,
            rounds=tuple(rounds),
            budget_steps=steps,
            budget_seconds=None if budget_minutes is None else 60 * budget_minutes,
            warm_up_seconds=warm_up,
            predicted_seconds=fixed + steps * a_step,
            predicted_trial_seconds={name: sum(stages.values()) for name, stages in trials.items()},
        )
        return Trials(tuple(skipped), search)

    def _check_features(self) -> None:
        """Check, before any trial, that the Fréchet distance can be measured."""
        subject, judged = self.bench.subject, replace(self.evaluation, metrics=("frechet",))
        try:
            plan_evaluation({"dense": subject.model}, subject.process, self.bench.dataset, judged)
        except SecateurError as error:
            raise SecateurError(f"no frechet: {error}; or use --score loss") from error

    def _times(
        self, names: Sequence[str], steps: int, second: float, skipped: list[TrialResult]
    ) -> dict[str, dict[str, float]]:
        """Predicted seconds of trials of `steps` steps; adds the recipes that cannot run to `skipped`.

        Raises:
            SecateurError: none can.
        """
        times = {}
        for name in names:
            trial = self.trial(name, steps)
            try:
                with quiet(True):  # it has other steps than the trials, and thus a book of another size
                    times[name] = plan_trial(self.bench, trial, second)
            except SecateurError as error:
                skipped.append(replace(trial.waiting, rung=0, status="skipped", reason=str(error)))
        if not times:
            raise SecateurError(f"no recipe can run: {skipped[0].reason}")
        return times

    def find(self, run: Path, found: Trials) -> Trials:
        """Run the remaining rounds; `trials.json` is updated after each trial."""
        search = search_of(found)
        candidates = list(search.recipes)
        for rung, one in enumerate(search.rounds):
            found = self._round(run, found, rung, [self.trial(recipe, one.steps) for recipe in candidates])
            scores = scores_of_round(found, rung)
            if not scores:
                raise SecateurError(f"every trial of round {rung + 1} failed; see {run / TRIALS}")
            ranked = order(scores, search.predicted_trial_seconds)
            left = search.rounds[rung + 1].candidates if rung + 1 < len(search.rounds) else 1
            found = replace(found, trials=tuple(_judged(each, rung, ranked, left, scores) for each in found.trials))
            candidates = ranked[:left]
            if is_main_process():
                write_result(run / TRIALS, found)
        return replace(found, search=replace(search, winner=candidates[0]))

    def _round(self, run: Path, found: Trials, rung: int, trials: Sequence[Trial]) -> Trials:
        """Run and score the trials of a round, but for those that are done already."""
        outcomes = {"found": found}

        def work(trial: Trial) -> str:
            place = f"round {rung + 1} of {len(search_of(found).rounds)}, {trials.index(trial) + 1} of {len(trials)}"
            say(f"{place}: {trial.recipe}, {number_of(trial.settings.recovery.steps, 'step')}")
            return json.dumps(to_json(self._try(run, rung, trial)))

        def collect(said: str) -> None:
            outcome = from_json(TrialResult, json.loads(said), "a trial")
            if outcome.status == "failed":
                say(f"{outcome.name} failed: {outcome.reason}")
            outcomes["found"] = _noted(run, outcomes["found"], outcome)

        done = {each.name for each in found.trials if each.status == "done"}
        share_out([trial for trial in trials if _named(rung, trial) not in done], work, collect)
        collected = announced(lambda: json.dumps(to_json(outcomes["found"])))
        return from_json(Trials, json.loads(collected), run / TRIALS)

    def _try(self, run: Path, rung: int, trial: Trial) -> TrialResult:
        """Run and score one trial."""
        name = _named(rung, trial)
        folder = run / "trials" / name
        others = sorted(other for other in (run / "trials").glob("*") if other != folder)
        outcome = attempt(self.bench, trial, folder, others, run / CACHE, report=False)
        outcome = replace(outcome, name=name, rung=rung)
        if outcome.status == "done":
            score = self._measure(folder)
            if math.isfinite(score.value):
                outcome = replace(outcome, score=score)
            else:
                outcome = replace(outcome, status="failed", reason="its score is not finite")
            shutil.rmtree(folder / "recovery" / "checkpoints", ignore_errors=True)  # a trial is never continued
        return outcome

    def _measure(self, folder: Path) -> Score:
        """The score of a trial's final model."""
        if self.score == "frechet":
            evaluation = read_result(Evaluation, folder / "evaluation" / "evaluation.json")
            distance = evaluation.final.estimates.get("fd")
            return Score(math.nan) if distance is None else Score(distance.value, distance.std)
        subject = self.bench.subject
        model = reopened(folder / "model", subject)
        losses = []
        for place in range(SCORE_BATCHES):
            seed = torch_seed(self.seed, Purpose.JUDGEMENT, index=place)
            chosen = ScoringConfig(num_images=SCORE_BATCH, seed=seed)
            batch = calibration(subject, self.bench.dataset, chosen)
            losses.append(denoising_loss_per_timestep(model, subject.process, batch, seed=seed)[1].mean().item())
        return score_of(losses)

    def finish(self, run: Path, found: Trials) -> Trials:
        """Spend the rest of the budget on the winner, and write what was found."""
        search, folder = search_of(found), run / WINNER
        if search.winner_steps is None:
            search = replace(search, winner_steps=self._steps_left(run, found))
            search = replace(search, sentences=tuple(_sentences(found, search)))
            found = replace(found, search=search)
            write_result(run / TRIALS, found)
        recipe, steps = str(search.winner), search.winner_steps
        made = make_trial(recipe, self.goal, self.seed, self.shared, steps=steps, evaluation=self.evaluation)
        trial = _fit_stages(made)
        noted = any(each.name == WINNER and each.status == "done" for each in found.trials)
        if not (is_done(folder) and noted):  # it may have been killed between the two
            say(f"winner: {recipe}, {number_of(steps or 0, 'step')}")
            others = sorted((run / "trials").glob("*"))
            outcome = attempt(self.bench, trial, folder, others, run / CACHE, report=False)
            if outcome.status == "done":
                pipeline_stage(folder, self.bench.subject, reopened(folder / "model", self.bench.subject))
                write_report(folder)
                tidy(folder, trial.settings.recovery, trial.settings.schedule == "one-shot")
            found = _noted(run, found, replace(outcome, name=WINNER, folder=WINNER))
            if outcome.status != "done":
                raise SecateurError(f"the winner, {recipe}, failed: {outcome.reason}; the same command tries again")
        return found

    def _steps_left(self, run: Path, found: Trials) -> int:
        """Steps for the winner; with a budget in minutes, at least as many as in its last trial."""
        search = search_of(found)
        done = [each for each in found.trials if each.status == "done"]
        if search.budget_seconds is None or not done:
            return search.budget_steps - sum(each.steps or 0 for each in done)
        last = [each for each in done if each.recipe == search.winner][-1]
        steps, took = last.steps or 0, read_run(run / "trials" / last.name).recovery.seconds or 0.0
        trial = make_trial(str(search.winner), self.goal, self.seed, self.shared, evaluation=self.evaluation)
        measuring = plan_trial(self.bench, trial, seconds_per_pair(self.bench.subject))["evaluate"]
        left = search.budget_seconds - sum(each.seconds or 0.0 for each in done) - measuring - search.warm_up_seconds
        return max(steps, int(left / took * steps))


def search_of(found: Trials) -> Search:
    """The search that the trials belong to.

    Raises:
        SecateurError: the folder holds trials of a sweep, or the record of its search is inconsistent.
    """
    search = found.search
    if search is None:
        raise SecateurError(f"{TRIALS} is of a sweep, which has no search; choose another --out")
    known = set(search.recipes) & search.predicted_trial_seconds.keys()
    scored = [(each.recipe, each.score) for each in found.trials if each.score is not None]
    batches = {len(score.parts) for _, score in scored}
    damage = {
        "other rounds than its budget gives": list(search.rounds)
        != rounds_of(len(search.recipes), search.budget_steps),
        "recipes without a predicted time": not search.recipes or len(known) < len(search.recipes),
        "scores of no recipe": any(recipe not in known for recipe, _ in scored),
        "scores of other batches": len(batches) > 1 or batches == {1},
    }
    if wrong := [name for name, there in damage.items() if there]:
        raise SecateurError(f"{TRIALS} is damaged: it has {' and '.join(wrong)}; choose another --out")
    return search


def _named(rung: int, trial: Trial) -> str:
    return f"round-{rung + 1}_{trial.name}"


def scores_of_round(found: Trials, rung: int) -> dict[str, Score]:
    """The scores of a round's trials, by recipe, where there is one."""
    return {str(each.recipe): each.score for each in found.trials if each.rung == rung and each.score is not None}


def _judged(one: TrialResult, rung: int, ranked: list[str], left: int, scores: dict[str, Score]) -> TrialResult:
    """The trial with its outcome in round `rung`, after which `left` recipes remain."""
    if one.rung != rung or one.score is None:
        return one
    at = ranked.index(str(one.recipe))
    tie = " (tied)" if at and tied(one.score, scores[ranked[0]]) else ""
    goes_on = "won" if left == 1 else "goes on"
    return replace(one, verdict=(goes_on if at < left else "dropped") + tie)


def _noted(run: Path, found: Trials, outcome: TrialResult) -> Trials:
    """Append an outcome to the trials, and write `trials.json`."""
    found = replace(found, trials=(*(each for each in found.trials if each.name != outcome.name), outcome))
    write_result(run / TRIALS, found)
    return found


def _fit_stages(trial: Trial) -> Trial:
    """The trial, with progressive stages shortened to take at most half of its steps."""
    settings = trial.settings
    fitting = settings.recovery.steps // (2 * settings.progressive.last_stage)
    if settings.schedule != "progressive" or fitting >= settings.progressive.stage_steps:
        return trial
    shorter = replace(settings.progressive, stage_steps=max(fitting, 1))
    return replace(trial, settings=replace(settings, progressive=shorter))


def _sentences(found: Trials, search: Search) -> list[str]:
    """Sentences: what was tried, what won, and by which rule."""
    scores = scores_of_round(found, len(search.rounds) - 1)
    if not scores:
        could = " that could run" if any(each.status == "skipped" for each in found.trials) else ""
        return [f"{search.winner} was the only recipe{could}, so nothing was searched."]
    winner = scores.pop(str(search.winner))
    spent = sum(each.steps or 0 for each in found.trials if each.status == "done")
    against = [
        f"{name} {score.value:.4g} ({'tied' if tied(winner, score) else 'clearly different'})"
        for name, score in scores.items()
    ]
    beaten = f", against {', '.join(against)}" if against else ""
    rounds = number_of(len(search.rounds), "round")
    return [
        f"{search.winner} won: {winner.value:.4g}{beaten}.",
        f"{len(search.recipes)} recipes were tried in {rounds} with {number_of(spent, 'recovery step')}; the "
        f"winner had {search.winner_steps}.",
        f"They were judged by {search.judged_by}; {search.ties}.",
    ]
