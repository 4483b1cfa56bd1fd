"""Options of version 0.1 that have another name now. Each is taken for one minor version; a line says its new name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..base.console import note

RENAMED = {
    "--recovery.steps": "--steps",
    "--recovery.objective": "--objective",
    "--evaluation.metrics": "--metrics",
    "--evaluation.latency-rounds": "--evaluation.latency.rounds",
    "--evaluation.latency-batch-sizes": "--evaluation.latency.batch-sizes",
    "--evaluation.latency-dtype": "--evaluation.latency.dtype",
    "--evaluation.compile": "--evaluation.latency.compile",
    "--evaluation.no-compile": "--evaluation.latency.no-compile",
    "--evaluation.statistics": "--evaluation.frechet.statistics",
    "--evaluation.save-statistics": "--evaluation.frechet.save-statistics",
    "--evaluation.clip": "--evaluation.clip.model",
    "--evaluation.ftle-images": "--evaluation.ftle.images",
    "--evaluation.ftle-iterations": "--evaluation.ftle.iterations",
}
GONE_IN = "0.3"


def with_present_names(options: Sequence[str]) -> list[str]:
    """The `options` of a command line, those of version 0.1 under the names that they have now."""
    return [_present(word) for word in options]


def _present(word: str) -> str:
    found = re.match(r"--[\w.-]+", word)
    if found is None:
        return word
    name = found[0].replace("_", "-")
    if name not in RENAMED:
        return word
    note(f"{name} is called {RENAMED[name]} now; the old name goes in version {GONE_IN}")
    return RENAMED[name] + word[found.end() :]
