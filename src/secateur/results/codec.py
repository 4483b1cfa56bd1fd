"""Results as JSON, and back; reading checks every field."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ..base.errors import SecateurError, first_line
from ..base.files import read_json, write_json, write_text
from ..base.records import located, record_of

T = TypeVar("T")


def to_json(result: Any) -> Any:
    """A result as plain JSON values, null for numbers that are not finite."""
    # Python's json also writes file names that are not UTF-8.
    return json.loads(json.dumps(msgspec.to_builtins(result)), parse_constant=lambda name: None)


def from_json(kind: type[T], value: Any, source: str | Path) -> T:
    """The result of type `kind` that plain JSON values describe.

    Args:
        kind: a result, or a type that `msgspec` knows, such as `dict[str, float]`.
        value: what JSON holds.
        source: the origin of the value, for errors.

    Raises:
        SecateurError: a field is missing, of another type, or contradicts another; the message names source and field.
    """
    return record_of(kind, value, source)


def read_result(kind: type[T], path: str | Path) -> T:
    """The result in the JSON file `path`.

    Raises:
        SecateurError: it is missing, is not JSON, or holds something else; the message names file and field.
    """
    return from_json(kind, read_json(path), path)


def write_result(path: str | Path, result: Any) -> Path:
    """Write a result as JSON to `path`; returns the path."""
    return write_json(path, to_json(result))


def write_lines(path: str | Path, results: Iterable[Any]) -> Path:
    """Write results as JSON to `path`, one a line; returns the path."""
    return write_text(path, "".join(json.dumps(to_json(each)) + "\n" for each in results))


def read_lines(path: str | Path) -> tuple[dict[str, Any], ...]:
    """The objects in a file of one JSON object a line; an incomplete last line, left by a killed run, is ignored.

    Raises:
        SecateurError: a line is not UTF-8, not JSON, or not an object; the message names file and line.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise SecateurError(f"{path} cannot be read: {first_line(error)}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(msgspec.json.decode(line, type=dict[str, Any]))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if number == len(lines):  # complete lines end with a line break
                break
            raise SecateurError(f"{path} is damaged: line {number}: {located(first_line(error))}") from error
    return tuple(found)
