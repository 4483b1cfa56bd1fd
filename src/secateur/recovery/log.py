"""Logs of a recovery run, one JSON object to a line, each with its `step`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.files import write_text

Window = dict[str, tuple[float, int]]  # sum and number of the values since the last line


def seen(window: Window, values: Mapping[str, float]) -> Window:
    """`window` with the finite ones of `values` (a step in float16 may overflow, and is then not taken)."""
    found = dict(window)
    for name, value in values.items():
        if math.isfinite(value):
            total, count = window.get(name, (0.0, 0))
            found[name] = (total + value, count + 1)
    return found


def means(window: Window) -> dict[str, float]:
    """The mean of each value over the steps that had it."""
    return {name: total / count for name, (total, count) in window.items()}


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Drop what a run that was killed wrote after its last checkpoint: the lines after `step`, and half a last one."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines and not _is_whole(lines[-1]):
            del lines[-1]
        write_text(path, "".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step))


def _is_whole(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
