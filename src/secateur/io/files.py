"""Which files of a model folder may be read: regular files inside it, and only JSON, safetensors and vocabularies.

A symbolic link is followed inside the folder, and from a snapshot of the hub's cache to the `blobs` of the same
repository, where that cache keeps every file. Other links could read private files, or copy them into a folder that is
published later.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ..base.errors import ModelError

LEFT_OUT = (".py", ".pyc", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".onnx")


def checked(folder: Path) -> list[Path]:
    """Every visible file below `folder`, after checking that none is outside it.

    Raises:
        ModelError: a link leads out of the folder or is circular, or something is not a regular file.
    """
    return list(_walk(folder, _roots(folder), (folder.resolve(),)))


def check_file(path: Path, folder: Path) -> Path:
    """`path`, after checking that it is a regular file inside `folder`.

    Raises:
        ModelError: it is not.
    """
    _check(path, _roots(folder))
    return path


def copy_folder(source: Path, target: Path, without: frozenset[str] = frozenset()) -> None:
    """Copy the files of a pipeline: no hidden files, code or pickles, nor the top-level names in `without`.

    Raises:
        ModelError: as `checked`.
    """
    for path in checked(source):
        place = path.relative_to(source)
        if place.parts[0] not in without and path.suffix.lower() not in LEFT_OUT:
            (target / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / place)


def _walk(folder: Path, roots: tuple[Path, ...], within: tuple[Path, ...]) -> Iterator[Path]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):  # of version control and of caches
            continue
        path = Path(entry.path)
        _check(path, roots)
        if not entry.is_dir():
            yield path
            continue
        real = path.resolve()
        if real in within:
            raise ModelError(f"{path} links to the folder that it is in; remove the link")
        yield from _walk(path, roots, (*within, real))


def _check(path: Path, roots: tuple[Path, ...]) -> None:
    try:
        real = path.resolve(strict=True)
        kind = real.stat().st_mode
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or "its links lead nowhere"
        raise ModelError(f"{path} cannot be read: {why}") from error
    if not any(real.is_relative_to(root) for root in roots):
        raise ModelError(f"{path} is a link that leads out of the model's folder; put the file itself there")
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise ModelError(f"{path} is no regular file; remove it")


def _roots(folder: Path) -> tuple[Path, ...]:
    """The folder itself, and the blobs of its repository if it is a snapshot in the hub's cache."""
    real = folder.resolve()
    snapshots = next((each for each in (real, *real.parents) if each.parent.name == "snapshots"), None)
    return (real,) if snapshots is None else (snapshots, snapshots.parent.parent / "blobs")
