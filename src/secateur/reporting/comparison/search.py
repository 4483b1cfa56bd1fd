"""What a search by successive halving tried: a table, a figure and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ...results.means import Mean
from ..plots.comparison import looks, plot_scores
from ..tables import Table


def search_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each short trial."""
    columns = ("recipe", "round", "steps", "score ± standard error", "seconds", "outcome")
    rows = tuple(
        (
            trial["recipe"],
            trial["rung"] + 1,
            trial["steps"],
            str(Mean(trial["score"]["value"], trial["score"]["error"])) if trial.get("score") else None,
            trial.get("seconds"),
            trial["reason"] or trial.get("verdict", ""),
        )
        for trial in trials
    )
    return Table(columns, rows)


def plot_search(trials: Sequence[Mapping[str, Any]]) -> Figure:
    """Score of every candidate against the steps of its trials."""
    scored = [trial for trial in trials if trial.get("score")]
    names = list(dict.fromkeys(trial["recipe"] for trial in scored))
    curves = {
        name: [(trial["steps"], trial["score"]["value"], trial["score"]["error"]) for trial in scored
               if trial["recipe"] == name]
        for name in names
    }  # fmt: skip
    return plot_scores(curves, dict(zip(names, looks(names, [""] * len(names)), strict=True)))


def search_sentences(found: Mapping[str, Any]) -> list[str]:
    """What won, and by which rule; nothing where there was no search."""
    return list(found.get("search", {}).get("sentences", ()))
