"""JSON files as typed records, with every field checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import SecateurError
from .files import read_json

T = TypeVar("T")


def read_record(kind: type[T], path: str | Path) -> T:
    """The JSON file `path` as `kind`: a dataclass, a `msgspec.Struct`, or a type such as `dict[str, int]`.

    Raises:
        SecateurError: the file is missing, is not JSON, or has other fields; the message names file and field.
    """
    return record_of(kind, read_json(path), path)


def record_of(kind: type[T], value: Any, source: str | Path) -> T:
    """Plain JSON values as `kind`.

    Raises:
        SecateurError: a field is missing or of another type; the message names `source` and field.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise SecateurError(f"{source} is damaged: {located(str(error))}") from error
    except UnicodeEncodeError as error:
        raise SecateurError(f"{source} is damaged: it holds a text that is not UTF-8") from error


def located(message: str) -> str:
    """msgspec's message with the field in front: "dims: expected `object`, got `array`"."""
    said, _, place = message.partition(" - at ")
    said = said[:1].lower() + said[1:]
    field = re.sub(r"^\$\.?", "", place.strip("`"))
    return f"{field}: {said}" if field else said
