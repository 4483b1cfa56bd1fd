"""A disk that is nearly full, and what killed processes leave on one."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from secateur.base.owners import MACHINE


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Inside the block no file can grow beyond `size` bytes; the limit ends with it, as pytest may print to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


DEAD = 2**22 + 1  # above all numbers of processes


def left_behind(name: str, pid: int = DEAD, machine: str = MACHINE) -> str:
    """The name under which a process was writing `name` when it was killed."""
    return f".{name}.{pid}-{machine}.tmp"
