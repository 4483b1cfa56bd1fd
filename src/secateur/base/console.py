"""Progress bars with time left; plain lines when there is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .distributed import is_main_process

Advance = Callable[[int, str], None]
SECONDS_BETWEEN_LINES = 10.0

_shown: list[Progress] = []  # a terminal has one display, and a bar within another becomes a line of it


@contextmanager
def progress(description: str, total: int, start: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` steps; the block calls `advance(steps, note)`."""
    if not sys.stderr.isatty():
        yield _plain_lines(description, total, start)
        return
    within = bool(_shown)
    with nullcontext(_shown[0]) if within else _display() as bar:
        task = bar.add_task(description, total=total, completed=start, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance
        if within:
            bar.remove_task(task)


@contextmanager
def _display() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as display:
        _shown.append(display)
        try:
            yield display
        finally:
            _shown.remove(display)


def _plain_lines(description: str, total: int, start: int) -> Advance:
    begun = time.monotonic()
    state = {"done": start, "said": begun}

    def advance(steps: int = 1, note: str = "") -> None:
        state["done"] += steps
        now = time.monotonic()
        finished = state["done"] >= total
        if not finished and now - state["said"] < SECONDS_BETWEEN_LINES:
            return
        state["said"] = now
        left = (now - begun) / max(state["done"] - start, 1) * (total - state["done"])
        print(f"{description} {state['done']:.0f}/{total}, {left:.0f} s left {note}".rstrip(), file=sys.stderr)

    return advance


def note(line: str) -> None:
    """Something the user should know, beside the output."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Output for the user."""
    if is_main_process():
        print(line, flush=True)
