"""Lines and progress bars for people; nothing is printed or drawn unless `shown` asks for it.

Without it lines go to the logger "secateur" at level INFO, and nothing is drawn.
"""

from __future__ import annotations

import builtins
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

with warnings.catch_warnings():  # before other libraries import it
    warnings.simplefilter("ignore")  # in a notebook without ipywidgets: bars are text then
    from tqdm.auto import tqdm

from .distributed import is_main_process

Advance = Callable[[int, str], None]
SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger("secateur")
_visible: ContextVar[bool] = ContextVar("visible", default=False)


@contextmanager
def shown(visible: bool) -> Iterator[None]:
    """Print lines and draw progress bars inside the block if `visible`; otherwise as outside."""
    if not visible:
        yield
        return
    before = _visible.set(True)
    try:
        yield
    finally:
        _visible.reset(before)


@contextmanager
def quiet(hides: bool) -> Iterator[None]:
    """Print and log nothing inside the block, if it `hides`."""
    if not hides:
        yield
        return
    before, disabled = _visible.set(False), logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        _visible.reset(before)
        logger.disabled = disabled


def say(line: str) -> None:
    """Print a line for the user, from the main process only."""
    if not is_main_process():
        return
    if _visible.get():
        print(line, flush=True)
    else:
        logger.info(line)


def note(line: str) -> None:
    """Print a note for the user, apart from the output."""
    if not is_main_process():
        return
    if _visible.get():
        print(line, file=sys.stderr, flush=True)
    else:
        logger.warning(line)


@contextmanager
def progress(description: str, total: int, start: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` steps with the time left; the block calls `advance(steps, note)`.

    Draws a bar in a terminal or a notebook, and prints a line every few seconds elsewhere.
    """
    if not _visible.get():
        yield _silent
    elif sys.stderr.isatty() or hasattr(builtins, "__IPYTHON__"):
        with tqdm(total=total, initial=start, desc=description, leave=False, dynamic_ncols=True) as bar:

            def advance(steps: int = 1, note: str = "") -> None:
                bar.set_postfix_str(note, refresh=False)
                bar.update(steps)

            yield advance
    else:
        yield _plain_lines(description, total, start)


def _silent(steps: int = 1, note: str = "") -> None:
    pass


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
        remaining = (now - begun) / max(state["done"] - start, 1) * (total - state["done"])
        print(f"{description} {state['done']:.0f}/{total}, {remaining:.0f} s to go {note}".rstrip(), file=sys.stderr)

    return advance


@contextmanager
def silenced_libraries() -> Iterator[None]:
    """Hide warnings and logs of other libraries below errors inside the block."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
