"""Trials of a sweep or of a search for a recipe, and their states: `trials.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec

from .display import Displayed
from .means import Mean
from .table import Table

Status = Literal["done", "failed", "skipped", "waiting"]


@dataclass(frozen=True)
class Score:
    """A score, lower is better, with its standard error; `parts` are scores on batches that are the same for all
    candidates."""

    value: float
    error: float | None = None
    parts: tuple[float, ...] = ()

    def __str__(self) -> str:
        return str(Mean(self.value, self.error, self.error))


@dataclass(frozen=True)
class TrialResult:
    """One compression of a sweep or a search, and its outcome.

    Attributes:
        name: also its folder in `trials/`, unless `folder` is given.
        recipe, criterion, schedule, objective, target, steps, seed: the choices.
        status: its state.
        reason: why it failed or was skipped.
        seconds: time of the last attempt.
        rung: the round of a search, from 0.
        score: its score in a search.
        verdict: whether it advances in a search, and whether that was a tie.
    """

    name: str
    status: Status
    recipe: str | None = None
    criterion: str | None = None
    schedule: str | None = None
    objective: str | None = None
    target: str | None = None
    steps: int | None = None
    seed: int | None = None
    reason: str = ""
    seconds: float | None = None
    folder: str | None = None
    rung: int | None = None
    score: Score | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Round:
    """How many candidates a round has, and the recovery steps of each."""

    candidates: Annotated[int, msgspec.Meta(ge=1)]
    steps: Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True)
class Search:
    """The plan of a search for a recipe, and what it found.

    Attributes:
        recipes: the candidates.
        score: how they are compared: loss or frechet.
        judged_by, ties: the same in words, and how ties are broken.
        rounds: each halves the candidates.
        budget_steps, budget_seconds: the whole budget.
        warm_up_seconds, predicted_seconds: predicted times of the warm-up and of everything.
        predicted_trial_seconds: predicted time of each recipe's trial in the first round.
        winner, winner_steps: the winner, and the steps left for it; None until it is known.
        sentences: what was found.
    """

    recipes: tuple[str, ...]
    score: str
    judged_by: str
    ties: str
    rounds: tuple[Round, ...]
    budget_steps: int
    budget_seconds: float | None = None
    warm_up_seconds: float = 0.0
    predicted_seconds: float = 0.0
    predicted_trial_seconds: Mapping[str, float] = field(default_factory=dict)
    winner: str | None = None
    winner_steps: int | None = None
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trials(Displayed):
    """Every trial, and the search that they belong to, if any."""

    trials: tuple[TrialResult, ...]
    search: Search | None = None
    format: Literal[1] = 1

    def sentences(self) -> tuple[str, ...]:
        """What a search found."""
        return () if self.search is None else self.search.sentences

    def tables(self) -> dict[str, Table]:
        """Every trial."""
        found = {"trials": trial_table(self.trials)}
        searched = [trial for trial in self.trials if trial.rung is not None]
        return found | ({"search": search_table(tuple(searched))} if searched else {})


def trial_table(trials: tuple[TrialResult, ...]) -> Table:
    """The choices and the state of each trial."""
    shown = ("name", "recipe", "criterion", "objective", "target", "steps", "seed", "status", "seconds", "reason")
    values = ((getattr(trial, key) for key in shown) for trial in trials)
    rows = tuple(tuple(None if value == "" else value for value in row) for row in values)
    return Table(("trial", *shown[1:]), rows).without_empty_columns()


def search_table(trials: tuple[TrialResult, ...]) -> Table:
    """One line for each short trial of a search."""
    rows = tuple(
        (trial.recipe, (trial.rung or 0) + 1, trial.steps, None if trial.score is None else str(trial.score),
         trial.seconds, trial.reason or trial.verdict)
        for trial in trials
    )  # fmt: skip
    return Table(("recipe", "round", "steps", "score ± standard error", "seconds", "outcome"), rows)
