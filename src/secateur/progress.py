"""Progress bars with time left; plain lines when there is no terminal."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[[int, str], None]
SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(description: str, total: int, start: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` steps; the block calls `advance(steps, note)`."""
    if sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total, completed=start, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                bar.update(task, advance=steps, note=note)

            yield advance
        return
    yield _plain_lines(description, total, start)


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
