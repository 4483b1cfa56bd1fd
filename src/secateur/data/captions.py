"""Captions of an image folder: `metadata.jsonl`, a line of `{"file_name": ..., "text": ...}` for each image.

This is the imagefolder layout of `datasets`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..base.errors import DataError, first_line

METADATA = "metadata.jsonl"


def read_captions(folder: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """The caption of each image in `paths`; none if `folder` has no metadata, or metadata without text.

    Raises:
        DataError: a line that is not JSON, a file that is not there, an image without a caption.
    """
    metadata = folder / METADATA
    if not metadata.is_file():
        return ()
    lines = _entries(metadata)
    entries = {Path(entry["file_name"]): entry.get("text") for entry in lines}
    if len(entries) < len(lines):
        twice = {name for name, count in Counter(Path(entry["file_name"]) for entry in lines).items() if count > 1}
        raise DataError(f"{metadata} has several lines for {_some(twice)}; leave one of them")
    if all(text is None for text in entries.values()):
        return ()
    names = [path.relative_to(folder) for path in paths]
    if absent := entries.keys() - set(names):
        raise DataError(f"{metadata} names {_some(absent)}, not among the images of {folder}; correct it")
    without = [name for name in names if not isinstance(entries.get(name), str)]
    if without:
        raise DataError(f"{metadata} has no `text` for {_some(without)}; give every image a caption")
    return tuple(str(entries[name]) for name in names)


def _entries(metadata: Path) -> list[dict[str, Any]]:
    entries = []
    try:
        lines = metadata.read_text(encoding="utf-8").split("\n")  # splitlines would split inside strings
    except (OSError, ValueError) as error:
        raise DataError(f"{metadata} cannot be read: {first_line(error)}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{metadata}, line {number} is not JSON: {first_line(error)}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise DataError(f'{metadata}, line {number} names no file; give {{"file_name": ..., "text": ...}}')
        entries.append(entry)
    return entries


def _some(paths: Sequence[Path] | set[Path]) -> str:
    names = sorted(str(path) for path in paths)
    return names[0] if len(names) == 1 else f"{len(names)} files, the first {names[0]}"
