"""Ctrl-C and SIGTERM: both stop a training run after the step at hand, and a command with a line and a status."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """SIGTERM came: a scheduler, a container or a person ends this process."""


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM wait for the end of a step: the block asks whether one came.

    When the block ends, however it ends, the signal does what it would have done without it, so that none is lost. A
    second signal is not held back. Outside of the main thread, which alone is interrupted, nothing is.
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
    """Let SIGTERM raise `Terminated` inside the block, so that what is being written is cleared away."""

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
