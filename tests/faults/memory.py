"""The memory of a call, as the peak of a child process, so that nothing else counts."""

import os
import resource
from collections.abc import Callable
from typing import Any


def grown(function: Callable[[], Any], seconds: int = 60) -> tuple[float, str]:
    """GiB by which the peak memory of a child process grew while it ran `function`, and the error it raised, if any."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said = ""
        try:
            function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        os.write(writing, f"{(after - before) / 2**20} {said}".encode(errors="replace")[:4096])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as stream:
        answer = stream.read()
    status = os.waitpid(child, 0)[1]
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    amount, _, said = answer.partition(" ")
    return float(amount), said
