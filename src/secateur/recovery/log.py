"""Logs of a recovery run, one JSON object to a line, each with its `step`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_text


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line."""
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def cut_log(path: Path, step: int) -> None:
    """Drop the lines after `step`, which a run that was killed wrote after its last checkpoint."""
    if path.exists():
        whole = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        write_text(path, "".join(f"{line}\n" for line in whole if json.loads(line)["step"] <= step))
