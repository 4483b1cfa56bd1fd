"""Work that is shared out between the processes of a launcher: each does one piece alone, then takes the next.

In training all processes take part in every step; here each has a device to itself. They meet in the launcher's store
of keys and values, and no process group is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from typing import TypeVar

from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from .console import quiet
from .distributed import LAUNCHERS, ON_A_NODE, PATIENCE, adopt_launcher, is_main_process, process_count, process_index

Task = TypeVar("Task")
Result = TypeVar("Result")
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LAUNCHED = (*TORCHRUN, *ON_A_NODE, *(name for names in LAUNCHERS for name in names))
_meetings = count()  # every process counts alike


@contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process knows of no others; only the main one prints."""
    main = is_main_process()
    hidden = {name: os.environ.pop(name) for name in LAUNCHED if name in os.environ}
    try:
        with quiet(not main):
            yield
    finally:
        os.environ.update(hidden)


def announced(decide: Callable[[], str]) -> str:
    """What `decide` returns in the main process, in all of them."""
    if process_count() == 1:
        return decide()
    store = _meet()
    if is_main_process():
        with alone():
            decided = decide()
        store.set("decided", decided)
        # The main process may hold the store, and end after this.
        store.wait([f"heard by {rank}" for rank in range(1, process_count())], PATIENCE)
        return decided
    store.wait(["decided"], PATIENCE)
    decided = store.get("decided").decode()
    store.set(f"heard by {process_index()}", "")
    return decided


def after_main(prepare: Callable[[], Result]) -> Result:
    """Run `prepare` in every process, in the main one first: the others find what it wrote."""
    made: list[Result] = []

    def first() -> str:
        made.append(prepare())
        return ""

    announced(first)
    if made:
        return made[0]
    with alone():
        return prepare()


def share_out(tasks: Sequence[Task], work: Callable[[Task], str], collect: Callable[[str], None]) -> None:
    """Do `work` on every task, each in the first process that is free; the main one collects the results as they
    come.

    Every process returns when all results are collected.
    """
    if process_count() == 1:
        for task in tasks:
            collect(work(task))
        return
    store, left = _meet(), list(range(len(tasks)))
    while (number := store.add("taken", 1) - 1) < len(tasks):
        with alone():
            store.set(f"result {number}", work(tasks[number]))
        left = _collect(store, left, collect, patient=False)
    _collect(store, left, collect, patient=True)
    announced(str)


def _collect(store: Store, left: list[int], collect: Callable[[str], None], patient: bool) -> list[int]:
    """Collect the results that are there, in the main process; the numbers of the others."""
    if not is_main_process():
        return left
    there = [number for number in left if patient or store.check([f"result {number}"])]
    for number in there:
        store.wait([f"result {number}"], PATIENCE)
        collect(store.get(f"result {number}").decode())
    return [number for number in left if number not in there]


def _meet() -> Store:
    """A part of the store for one use of it."""
    return PrefixStore(f"secateur {next(_meetings)}", _store())


@cache
def _store() -> Store:
    adopt_launcher()
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return store
