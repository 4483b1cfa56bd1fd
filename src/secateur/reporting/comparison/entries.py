"""The runs of a comparison, each with what tells it apart from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...base.errors import SecateurError
from ...base.files import read_json
from ...results.evaluation import ModelResult
from ..run import Run, read_run

TRIALS = "trials.json"  # in the folder of a sweep or a search: its trials, and how each of them stands
UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Entry:
    """One run, or the reason why there is none.

    `facets` are the choices that a reader would tell runs apart by; `facts` is the line of `trials.json`, if any.
    """

    name: str
    folder: Path
    facets: Mapping[str, str]
    seed: str
    status: str = "done"
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    run: Run | None = None

    @property
    def final(self) -> ModelResult | None:
        """The model that the run ends with, if it was evaluated."""
        return self.run.evaluation.models[-1] if self.run and self.run.evaluation.models else None

    @property
    def dense(self) -> ModelResult | None:
        """What it is compared with, if that was evaluated."""
        return self.run.evaluation.models[0] if self.run and len(self.run.evaluation.models) > 1 else None

    @property
    def recovery_seconds(self) -> float | None:
        """Seconds of the recovery's steps."""
        return self.run.records[-1].get("seconds") if self.run and self.run.records else None


def read_entries(folders: Sequence[str | Path]) -> list[Entry]:
    """The runs in `folders`; that of a sweep or a search gives all of its trials.

    Raises:
        SecateurError: a folder holds no run, or a damaged one.
    """
    entries: list[Entry] = []
    for folder in dict.fromkeys(Path(folder) for folder in folders):
        if (folder / TRIALS).is_file():
            config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
            shared = {name: str(config[name]) for name in ("model", "data") if name in config}
            entries += [_trial(folder, shared, facts) for facts in read_json(folder / TRIALS)["trials"]]
        else:
            entries.append(_run(folder))
    names = [entry.name for entry in entries]
    return [
        Entry(**{**vars(entry), "name": f"{entry.folder.resolve().parent.name}/{entry.name}"})
        if names.count(entry.name) > 1
        else entry
        for entry in entries
    ]


def _trial(folder: Path, shared: Mapping[str, str], facts: Mapping[str, Any]) -> Entry:
    place = folder / facts.get("folder", f"trials/{facts['name']}")
    run, status, reason = None, facts["status"], facts.get("reason") or ""
    if status == "done":
        try:
            run = read_run(place)
        except SecateurError as error:
            status, reason = UNREADABLE, str(error)
    shown = ("recipe", "criterion", "schedule", "objective", "steps", "target")
    facets = {name: str(facts[name]) for name in shown if facts.get(name) is not None}
    return Entry(facts["name"], place, {**shared, **facets}, str(facts.get("seed", "")), status, reason, facts, run)


def _run(folder: Path) -> Entry:
    run = read_run(folder)
    config, recovery = run.config, run.config.get("recovery") or {}
    chosen = {
        "model": config.get("model"),
        "data": config.get("data"),
        "recipe": config.get("recipe"),
        "criterion": config.get("criterion"),
        "schedule": config.get("schedule"),
        "objective": recovery.get("objective"),
        "steps": recovery.get("steps"),
        "target": run.cut.get("target"),
    }
    facets = {name: str(value) for name, value in chosen.items() if value is not None}
    return Entry(folder.resolve().name, folder, facets, str(recovery.get("seed", "")), run=run)
