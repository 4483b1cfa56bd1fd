"""Fault campaigns: many small trials in one warmed-up process, each logged, so that a campaign can be stopped."""

import argparse
import collections
import gc
import importlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf

from secateur.commands import COMMANDS as EVERY

GOOD = ("identical", "worked", "refused in one line")


@contextmanager
def warmed() -> Iterator[None]:
    """Everything that commands import is imported already, and PNG and PDF files of charts have no content.

    The charts themselves are drawn, as the SVG of the page. Nothing waits for the disk: the power stays on.
    """

    def written(canvas: Any, place: Path, **options: Any) -> None:
        Path(place).write_bytes(b"a chart")

    for name in (*(f"secateur.commands.{name.replace('-', '_')}" for name in EVERY), "sklearn.datasets", "PIL.Image"):
        importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patched:
        for canvas in (FigureCanvasAgg, FigureCanvasPdf):
            patched.setattr(canvas, "print_figure", written)
        patched.setattr(os, "fsync", lambda descriptor: None)
        gc.collect()
        gc.freeze()  # children write no memory that they share
        yield
        gc.unfreeze()


def carried_on(
    count: int, trial: Callable[[int], dict[str, Any]], log: Path | None = None, seconds: float = float("inf")
) -> dict[str, int]:
    """Run the trials that the log does not have yet, for a number of seconds; returns counts of all outcomes."""
    known = [] if log is None or not log.exists() else [json.loads(line) for line in log.read_text().splitlines()]
    until = time.monotonic() + seconds
    for index in range(len(known), count):
        if time.monotonic() > until:
            break
        known.append({"index": index, **trial(index)})
        line = json.dumps(known[-1])
        if known[-1]["outcome"] not in GOOD:
            print(line, flush=True)
        if log is not None:
            with log.open("a") as file:
                file.write(line + "\n")
    return dict(collections.Counter(each["outcome"] for each in known))


def command_line(campaign: Callable[..., dict[str, int]], about: str) -> None:
    """`python test_X.py COUNT`: run a campaign, print everything that is wrong, and the counts."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a line of JSON for each trial; the same command goes on after them")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--folder", type=Path, help="where to work; what all trials share is kept there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        print(campaign(given.count, folder, seed=given.seed, log=given.log, seconds=given.seconds))


def summary(logs: list[Path]) -> dict[str, Any]:
    """A summary of a campaign's logs: counts by kind, the slowest, the largest, and everything wrong."""
    trials = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    kinds = ("reader", "command", "signal", "first")
    found: dict[str, Any] = {"trials": len(trials), "outcomes": dict(collections.Counter(t["outcome"] for t in trials))}
    for kind in kinds:
        counted = collections.Counter((t[kind], t["outcome"]) for t in trials if kind in t)
        by_name: dict[str, dict[str, int]] = {}
        for (name, outcome), count in sorted(counted.items()):
            by_name.setdefault(name, {})[outcome] = count
        if by_name:
            found[f"by {kind}"] = by_name
    for amount in ("seconds", "grown"):
        if amount in trials[0] and "reader" in trials[0]:
            found[f"most {amount}"] = max(t[amount] for t in trials)
    return found | {"wrong": [t for t in trials if t["outcome"] not in GOOD]}


if __name__ == "__main__":
    import sys

    print(json.dumps(summary([Path(log) for log in sys.argv[1:]]), indent=1))
