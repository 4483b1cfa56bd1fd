"""Logs of a recovery run, one JSON object to a line, each with its `step`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.console import note
from ..base.files import write_text
from ..base.units import number_of

Window = dict[str, tuple[float, int]]  # sum and number of the values since the last line


def seen(window: Window, values: Mapping[str, float]) -> Window:
    """`window` with the finite ones of `values` added (a step in float16 may overflow, and is then skipped)."""
    found = dict(window)
    for name, value in values.items():
        if math.isfinite(value):
            total, count = window.get(name, (0.0, 0))
            found[name] = (total + value, count + 1)
    return found


def means(window: Window) -> dict[str, float]:
    """The mean of each value over the steps that have it."""
    return {name: total / count for name, (total, count) in window.items()}


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Drop what a killed run wrote after its last checkpoint: the lines after `step`, and an incomplete last one."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    steps = [_step_of(line) for line in lines]
    if damaged := steps[:-1].count(None):
        note(f"{path}: {number_of(damaged, 'line')} left out, which cannot be read")
    kept = [line for line, at in zip(lines, steps, strict=True) if at is not None and at <= step]
    write_text(path, "".join(f"{line.decode('utf-8')}\n" for line in kept))


def _step_of(line: bytes) -> int | None:
    """The step of a line; None if it cannot be read."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None
