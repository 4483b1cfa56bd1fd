"""Titles of pages about runs."""

from __future__ import annotations

from pathlib import Path

from ..results.cut import goal_in_words
from .run import Run

PARTS = ("model", "pruned", "pipeline", "relabelled")  # folders inside a run


def title_of(run: Run) -> str:
    """What was done to which model."""
    config = run.config
    model = name_of(config.model, run.folder.resolve().name)
    target = run.cut.target if run.cut is not None else config.target
    goal = goal_in_words(target)
    command = config.command
    if command == "finetune":
        return f"{model}, fine-tuned{_by(run)}"
    if command == "evaluate":
        return f"{model} beside {name_of(config.reference, '')}" if config.reference else f"{model}, evaluated"
    if command == "prune":
        return f"{model}, pruned to {goal}"
    if command in ("compress", "quickstart"):
        return f"{model}, compressed to {goal}"
    if run.cut is not None:
        return f"{model}, pruned to {goal}"
    return f"{model}, ranked by {run.ranking.criterion}" if run.ranking is not None else model


def name_of(place: object, otherwise: str) -> str:
    """The last part of a path or a hub id; after the run's name if that part is a folder inside a run."""
    names = [name for name in Path(str(place or "")).parts if name not in ("/", ".", "..")]
    if not names:
        return otherwise or "model"
    return "/".join(names[-2:]) if names[-1] in PARTS else names[-1]


def _by(run: Run) -> str:
    return f" by {run.config.objective}" if run.config.objective else ""
