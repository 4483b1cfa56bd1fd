"""The next step's draws, made by a second thread while the current step trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Drawn = TypeVar("Drawn")


@contextmanager
def prefetched(draw: Callable[[int], Drawn], steps: Sequence[int]) -> Iterator[Iterator[Drawn]]:
    """`draw(step)` for each of `steps`, in order, each computed while the one before it is in use.

    The thread uses one core: otherwise OpenMP would give it a thread pool that competes with this thread's.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_work_alone).result()
        torch.set_num_threads(threads)  # new threads start with this number
        yield _drawn(pool, draw, steps)


def _work_alone() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # settles it for this thread


def _drawn(pool: ThreadPoolExecutor, draw: Callable[[int], Drawn], steps: Sequence[int]) -> Iterator[Drawn]:
    upcoming = [pool.submit(draw, step) for step in steps[:1]]
    for step in steps[1:]:
        found = upcoming.pop().result()
        upcoming.append(pool.submit(draw, step))
        yield found
    for last in upcoming:
        yield last.result()
