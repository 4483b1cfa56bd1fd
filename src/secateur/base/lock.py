"""A lock on a folder, which is released when its process dies."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from .console import note
from .errors import SecateurError
from .owners import MACHINE, is_running

LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of some network file systems


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which must exist, inside the block.

    It is a kernel lock (flock) on the file `.lock`, so that nothing must be cleaned up after a kill; the owner named in
    the file is for people. On file systems without locks the named owner decides: on this machine it is checked whether
    it still runs, on another it is assumed to.

    Raises:
        SecateurError: another process holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        descriptor = _take(path)
        _sign(descriptor)
    except OSError as error:
        raise SecateurError(f"cannot write {path}: {error.strerror}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # gone with the whole folder
            path.unlink()  # before the lock is released, so that it is not another's
        os.close(descriptor)


def _take(path: Path) -> int:
    """The descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                _note_other_machine(path)
                return descriptor
            os.close(descriptor)  # the owner has removed it meanwhile
        except FileNotFoundError:
            os.close(descriptor)  # likewise
        except BlockingIOError:
            os.close(descriptor)
            raise _in_use(path) from None
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _NO_LOCKS:
                raise
            return _take_by_name(path)


def _take_by_name(path: Path) -> int:
    """As `_take`, for file systems without locks."""
    owner = _owner(path)
    if owner and (owner["machine"] != MACHINE or is_running(owner["pid"])):
        raise _in_use(path, f"; this file system has no locks, so if that process has ended, remove {path}")
    path.unlink(missing_ok=True)
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        raise _in_use(path) from None


def _sign(descriptor: int) -> None:
    since = datetime.now().isoformat(sep=" ", timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "machine": MACHINE, "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _owner(path: Path) -> dict[str, Any] | None:
    """The owner named in the file; None while it is being written."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return {"pid": int(owner["pid"]), **{key: str(owner[key]) for key in ("host", "machine", "since")}}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _in_use(path: Path, advice: str = "") -> SecateurError:
    owner = _owner(path)
    by = f"process {owner['pid']} on {owner['host']}, since {owner['since']}" if owner else "another process"
    return SecateurError(f"{path.parent} is in use by {by}: wait for it, or choose another folder{advice}")


def _note_other_machine(path: Path) -> None:
    """Print a note if locks may not work between machines, as on some network file systems."""
    owner = _owner(path)
    if owner and owner["host"] != socket.gethostname():
        note(
            f"{path.parent} was in use by process {owner['pid']} on {owner['host']}, which seems to have been killed; "
            "if it still runs, stop one of the two"
        )
