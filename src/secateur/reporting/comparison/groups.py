"""Runs that differ only in their seeds form one group, with a mean and a spread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...results.means import Mean, combine
from ..titles import name_of
from .entries import Entry

# Settings that tell where and when a run was made, not how.
CIRCUMSTANCES = ("command", "command_line", "versions", "device", "seed")
TELLING = ("model", "data", "recipe", "criterion", "schedule", "objective", "steps")
PLACES = ("model", "data")  # paths or ids, of which the ends say enough


@dataclass(frozen=True)
class Group:
    """Runs of one method at one target. The label leaves out what all groups share."""

    method: str
    target: str
    label: str
    entries: tuple[Entry, ...]

    @property
    def done(self) -> tuple[Entry, ...]:
        """The runs that are finished, the evaluated ones first."""
        finished = [entry for entry in self.entries if entry.run is not None]
        return tuple(sorted(finished, key=lambda entry: entry.final is None))

    def metric(self, key: str) -> Mean | None:
        """An estimated metric of the final models."""
        found = [entry.final.estimates[key] for entry in self.done if entry.final and key in entry.final.estimates]
        return combine([one.value for one in found], [one.std for one in found]) if found else None

    def amount(self, key: str) -> Mean | None:
        """A cost of the final models: macs, parameters, recovery_seconds, or latency_N (see `amount_of`)."""
        found = [amount for entry in self.done if (amount := amount_of(entry, key)) is not None]
        return combine(found, [None] * len(found)) if found else None


def amount_of(entry: Entry, key: str) -> float | None:
    """One cost of a run's final model; None where it was not measured. The sizes of one without an evaluation are its
    cut's.

    latency_N is in percent of the dense model's latency, timed in the same rounds: milliseconds measured at different
    times would also reflect the load of the machine.
    """
    if key == "recovery_seconds":
        return entry.recovery_seconds
    model = entry.final
    if key.startswith("latency_"):
        batch = key.removeprefix("latency_")
        timing, of = model and model.latency.get(batch), entry.dense and entry.dense.latency.get(batch)
        return 100 * timing.median_ms / of.median_ms if timing and of else None
    size = model or (entry.run.cut.after if entry.run is not None and entry.run.cut is not None else None)
    return None if size is None else getattr(size, key)


def group_entries(entries: Sequence[Entry]) -> list[Group]:
    """The groups in the order of their first runs."""
    methods = _methods(entries)
    found: dict[tuple[str, str], list[Entry]] = {}
    for entry, method in zip(entries, methods, strict=True):
        found.setdefault((method, entry.facets.get("target", "")), []).append(entry)
    several_methods = len({method for method, _ in found}) > 1
    several_targets = len({target for _, target in found}) > 1
    groups = []
    for (method, target), members in found.items():
        parts = [method] * (several_methods or not several_targets) + [target] * (several_targets and bool(target))
        groups.append(Group(method, target, " · ".join(parts), tuple(members)))
    return groups


def _steps(count: str) -> str:
    return "1 step" if count == "1" else f"{count} steps"


def _methods(entries: Sequence[Entry]) -> list[str]:
    """The shortest label that tells each run's method from the others'; the run's name if no choice does."""
    parts: list[list[str]] = [[] for _ in entries]
    for facet in TELLING:
        values = [entry.facets.get(facet, "") for entry in entries]
        values = distinct_ends(values) if facet in PLACES else values
        kinds: dict[tuple[str, ...], set[str]] = {}
        for part, value in zip(parts, values, strict=True):
            kinds.setdefault(tuple(part), set()).add(value)
        if any(len(kind) > 1 for kind in kinds.values()):
            named = [_steps(value) if facet == "steps" and value else value or f"no {facet}" for value in values]
            parts = [[*part, name] for part, name in zip(parts, named, strict=True)]
    shared = [" · ".join(part) for part in parts]
    alike: dict[tuple[str, str], set[str]] = {}
    for entry, method in zip(entries, shared, strict=True):
        alike.setdefault((method, entry.facets.get("target", "")), set()).add(_settings(entry))
    unclear = {method for (method, _), settings in alike.items() if len(settings) > 1}
    default = entries[0].facets.get("recipe", "") if len({entry.facets.get("recipe") for entry in entries}) == 1 else ""
    return [
        " · ".join(filter(None, (method, entry.name))) if method in unclear else method or default or entry.name
        for entry, method in zip(entries, shared, strict=True)
    ]


def distinct_ends(places: Sequence[str]) -> list[str]:
    """The name of each path or id, with as many of the parts before it as tell it apart from all others."""
    names = {place: name_of(place, "") for place in places if place}
    for place in names:
        parts = Path(place).parts
        ends = ["/".join(parts[-count:]) for count in range(1, len(parts))]
        others = [other for other in names if other != place]
        clear = (end for end in (names[place], *ends) if not any(f"/{other}".endswith(f"/{end}") for other in others))
        names[place] = next(clear, place)
    return [names.get(place, "") for place in places]


def _settings(entry: Entry) -> str:
    """All settings of a run but its seeds; "" for a trial, and for a run that was not made: their facets say enough."""
    return (
        ""
        if entry.run is None or entry.trial is not None
        else json.dumps(_without_seeds(entry.run.config), sort_keys=True)
    )


def _without_seeds(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_seeds(item) for key, item in value.items() if key not in CIRCUMSTANCES}
    return value
