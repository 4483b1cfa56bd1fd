"""Which process writes a temporary file: its name on disk tells, so that it can be checked whether the process still
runs."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path


def _machine() -> str:
    """Eight hexadecimal digits that differ between machines, boots, and containers with their own process numbers."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # Linux has both
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


MACHINE = _machine()


def is_running(pid: int) -> bool:
    """Whether a process of this machine has the number `pid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
