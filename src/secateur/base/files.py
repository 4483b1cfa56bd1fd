"""Files that are either there whole or not there at all: written under a temporary name, then renamed."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import SecateurError, first_line

_UMASK = os.umask(0)
os.umask(_UMASK)
_LEFT_BEHIND = re.compile(r"\..+\.\d+\.tmp")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` when the block succeeds.

    Raises:
        SecateurError: the disk is full, or the folder cannot be written; `path` is as it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _open_to_others(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise _error(path, error) from error
    finally:
        with suppress(OSError):  # gone already, or in a folder that is none: said above
            temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` when the block succeeds.

    Where `path` is there already, each file takes the place of its namesake and the other files stay.

    Raises:
        SecateurError: as `atomic_file`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with this number, as containers give again
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for written in temporary.rglob("*"):
            _open_to_others(written)
        if not path.exists():
            os.replace(temporary, path)
            return
        for written in sorted(file for file in temporary.rglob("*") if file.is_file()):
            place = path / written.relative_to(temporary)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(written, place)
    except (OSError, SafetensorError) as error:
        raise _error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_left_behind(folder: str | Path) -> None:
    """Remove what killed processes were writing in `folder`, in which no other process writes now."""
    for path in [path for path in Path(folder).rglob(".*.tmp") if _LEFT_BEHIND.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _error(path: Path, error: Exception) -> SecateurError:
    return SecateurError(f"cannot write {path}: {getattr(error, 'strerror', None) or first_line(error)}")


def _open_to_others(path: Path) -> None:
    """Give `path` the rights that the umask allows; safetensors files are born private."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_UMASK)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` atomically and return the path."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON to `path` atomically and return the path."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        SecateurError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SecateurError(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SecateurError(f"{path} is not readable JSON: {first_line(error)}") from error
