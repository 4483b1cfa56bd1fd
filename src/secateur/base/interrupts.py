"""Ctrl-C and SIGTERM: they stop training after the current step, and a command with one line and an exit status."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """Raised on SIGTERM, from a scheduler, a container or a person."""


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Delay Ctrl-C and SIGTERM to the end of a step: the block asks whether one came.

    When the block ends, in any way, the signal has its usual effect, so that none is lost. A second signal is not
    delayed. Outside the main thread, which alone receives signals, this does nothing.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def remember(number: int, frame: object) -> None:
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        for number in STOPPING:
            before[number] = signal.signal(number, remember)
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: bool(came)
    finally:
        restore()
        if came:
            signal.raise_signal(came[0])


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` inside the block, so that temporary files are removed."""

    def raise_terminated(number: int, frame: object) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, raise_terminated)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
