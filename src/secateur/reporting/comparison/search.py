"""What a search by successive halving tried: a figure and sentences."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from ...results import TrialResult, Trials
from ..plots.comparison import looks, plot_scores


def plot_search(trials: Sequence[TrialResult]) -> Figure:
    """Score of every candidate against the steps of its trials."""
    scored = [trial for trial in trials if trial.score is not None]
    names = list(dict.fromkeys(str(trial.recipe) for trial in scored))
    curves = {
        name: [
            (float(trial.steps or 0), trial.score.value, trial.score.error)
            for trial in scored
            if trial.recipe == name and trial.score is not None
        ]
        for name in names
    }
    return plot_scores(curves, dict(zip(names, looks(names, [""] * len(names)), strict=True)))


def search_sentences(found: Trials | None) -> list[str]:
    """Which candidate won, and by which rule; empty if there was no search."""
    return [] if found is None else list(found.sentences())
