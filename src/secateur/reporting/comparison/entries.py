"""The runs of a comparison, each with what tells it apart from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import SecateurError
from ...results import ModelResult, TrialResult, Trials, read_result
from ...results.run_settings import read_settings
from ..run import Run, read_run

TRIALS = "trials.json"  # in the folder of a sweep or a search: its trials and their states
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Entry:
    """One run, or the reason why there is none.

    `facets` are the choices by which a reader tells runs apart; `trial` is its entry in `trials.json`, if any.
    """

    name: str
    folder: Path
    facets: Mapping[str, str]
    seed: str
    status: str = "done"
    reason: str = ""
    trial: TrialResult | None = None
    run: Run | None = None

    @property
    def final(self) -> ModelResult | None:
        """The model that the run ends with, if it was evaluated."""
        return self.run.evaluation.final if self.run and self.run.evaluation else None

    @property
    def dense(self) -> ModelResult | None:
        """The dense model that it is compared with, if that was evaluated."""
        evaluation = self.run.evaluation if self.run else None
        return evaluation.dense if evaluation and evaluation.compares else None

    @property
    def recovery_seconds(self) -> float | None:
        """Seconds of the recovery's steps."""
        return self.run.recovery.seconds if self.run else None


def read_entries(folders: Sequence[str | Path]) -> list[Entry]:
    """The runs in `folders`; the folder of a sweep or a search stands for all of its trials.

    Raises:
        SecateurError: a folder holds no run, or a damaged one.
    """
    entries: list[Entry] = []
    for folder in dict.fromkeys(Path(folder) for folder in folders):
        if (folder / TRIALS).is_file():
            config = read_settings(folder)
            shared = {name: value for name, value in (("model", config.model), ("data", config.data)) if value}
            entries += [_trial(folder, shared, trial) for trial in read_result(Trials, folder / TRIALS).trials]
        else:
            entries.append(_run(folder))
    names = [entry.name for entry in entries]
    return [
        Entry(**{**vars(entry), "name": f"{entry.folder.resolve().parent.name}/{entry.name}"})
        if names.count(entry.name) > 1
        else entry
        for entry in entries
    ]


def _trial(folder: Path, shared: Mapping[str, str], trial: TrialResult) -> Entry:
    place = folder / (trial.folder or f"trials/{trial.name}")
    run, status, reason = None, str(trial.status), trial.reason
    if status == "done":
        try:
            run = read_run(place)
        except SecateurError as error:
            status, reason = UNREADABLE, str(error)
    shown = ("recipe", "criterion", "schedule", "objective", "steps", "target")
    facets = {name: str(value) for name in shown if (value := getattr(trial, name)) is not None}
    seed = "" if trial.seed is None else str(trial.seed)
    return Entry(trial.name, place, {**shared, **facets}, seed, status, reason, trial, run)


def _run(folder: Path) -> Entry:
    run = read_run(folder)
    config, recovery = run.config, run.config.recovery
    chosen = {
        "model": config.model,
        "data": config.data,
        "recipe": config.recipe,
        "criterion": config.criterion,
        "schedule": config.schedule,
        "objective": config.objective,
        "steps": recovery.get("steps"),
        "target": run.cut.target if run.cut else None,
    }
    facets = {name: str(value) for name, value in chosen.items() if value not in (None, "")}
    return Entry(folder.resolve().name, folder, facets, str(recovery.get("seed", "")), run=run)
