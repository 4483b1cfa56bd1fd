"""The processes that a launcher such as torchrun started: which one this is, and where they wait for each other."""

from __future__ import annotations

import os
from datetime import timedelta

from accelerate.state import PartialState

TIMEOUT = timedelta(days=1)  # processes wait for the one that samples, encodes or decides alone


def process_index() -> int:
    """The number of this process, from 0, by RANK."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """How many processes run the same command, by WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process writes and prints."""
    return process_index() == 0


def wait_for_everyone(on_cpu: bool) -> None:
    """Return when every process has come here; at once when there is one."""
    if process_count() > 1:
        PartialState(cpu=on_cpu, timeout=TIMEOUT).wait_for_everyone()
