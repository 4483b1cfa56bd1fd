"""Atomic writing: files are written under a temporary name, then renamed.

Contents are flushed to the disk before renaming, so that a power failure loses no more than a killed process.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import SecateurError, first_line
from .owners import MACHINE, is_running

_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)-(?P<machine>[0-9a-f]{8})\.tmp")
_ABANDONED_AFTER = 24 * 60 * 60  # seconds, for processes of other machines
_swept: set[Path] = set()
_sweeping = threading.Lock()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file in the folder of `path`; it becomes `path` when the block succeeds.

    Raises:
        SecateurError: the disk is full, or the folder cannot be written; `path` is as it was before.
    """
    path = Path(os.path.abspath(path))
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        temporary.touch()
        rights = _rights(temporary)  # by the umask; safetensors would create private files
        yield temporary
        temporary.chmod(rights)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise _error(path, error) from error
    finally:
        with suppress(OSError):  # gone already, or the folder does not exist, which an error above says
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, or in it if it exists; it becomes `path` when the block succeeds.

    If `path` exists, its files are replaced by those of the same name, and others stay. It may be on another disk than
    what is beside it.

    Raises:
        SecateurError: as `atomic_file`.
    """
    path = Path(os.path.abspath(path))  # "." has no name
    temporary = _temporary(path / path.name if path.is_dir() else path)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        _sweep(temporary.parent)
        temporary.mkdir()
        rights = _rights(temporary)
        yield temporary
        for written in temporary.rglob("*"):
            written.chmod(rights if written.is_dir() else rights & 0o666)
            _flush(written)
        _flush(temporary)
        if not path.exists():
            os.replace(temporary, path)
        else:
            for written in sorted(file for file in temporary.rglob("*") if file.is_file()):
                place = path / written.relative_to(temporary)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(written, place)
                _flush(place.parent)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        raise _error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_left_behind(path: Path, mine: bool = False) -> bool:
    """Whether `path` is a leftover of a process that has ended.

    A process of another machine cannot be checked: it counts as ended after a day, or if this process owns the folder
    (`mine`).
    """
    name = _TEMPORARY.fullmatch(path.name)
    if name is None:
        return False
    if name["machine"] != MACHINE:
        with suppress(OSError):
            return mine or time.time() - path.lstat().st_mtime > _ABANDONED_AFTER
        return False
    pid = int(name["pid"])
    return pid == os.getpid() or not is_running(pid)  # containers reuse the same number


def remove_left_behind(folder: str | Path) -> None:
    """Remove leftovers of ended processes in and below `folder`, which this process owns."""
    _remove(path for path in list(Path(folder).rglob(".*.tmp")) if is_left_behind(path, mine=True))


def _sweep(folder: Path) -> None:
    """Before the first write of this process in `folder`, remove leftovers of ended processes there."""
    with _sweeping:
        if folder not in _swept:
            _swept.add(folder)
            _remove(path for path in list(folder.glob(".*.tmp")) if is_left_behind(path))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{MACHINE}.tmp")


def _rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush a folder
            raise
    finally:
        os.close(descriptor)


def _error(path: Path, error: Exception) -> SecateurError:
    return SecateurError(f"cannot write {path}: {getattr(error, 'strerror', None) or first_line(error)}")


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` atomically, in UTF-8, and return the path.

    A byte of a file name that is not UTF-8 is written as JSON and Python spell it, as \\udce9.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON to `path` atomically and return the path."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        SecateurError: the file is missing, is no regular file, or is not JSON.
    """
    try:
        require_regular(Path(path))
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SecateurError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SecateurError(f"{path} is not readable JSON: {first_line(error)}") from error


def check_folder(path: str | Path) -> None:
    """Check, before long work starts, that files can be written in a folder, which need not exist yet.

    Raises:
        SecateurError: a file is in the way, or the rights are missing.
    """
    place = Path(path).absolute()
    there = next(folder for folder in (place, *place.parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise SecateurError(f"{there} is in the way: it is no folder; choose another place than {path}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SecateurError(f"{there} may not be written; choose another place than {path}")


def require_regular(path: Path) -> None:
    """Refuse a pipe, a device or a folder: opening one might block for ever.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: it is no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{path} is no regular file")
