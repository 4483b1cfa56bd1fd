"""The command line, or the call of a public function, by which a person made something."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

SECRETS = ("--token",)
LONGEST = 200  # of a value
_origin: ContextVar[str] = ContextVar("origin", default="")


def origin() -> str:
    """The command or call, ready to be pasted; empty if unknown."""
    return _origin.get()


@contextmanager
def begun_by(words: Sequence[str]) -> Iterator[None]:
    """Note that the block runs for the command line `secateur WORDS`."""
    before = _origin.set(shlex.join(["secateur", *_without_secrets(words)]))
    try:
        yield
    finally:
        _origin.reset(before)


def recorded(function: Function) -> Function:
    """Record calls of `function` as the origin, unless a command line or another public function made them."""

    @functools.wraps(function)
    def recording(*arguments: Any, **named: Any) -> Any:
        if _origin.get():
            return function(*arguments, **named)
        said = [*map(_shown, arguments), *(f"{name}={_shown(value)}" for name, value in named.items())]
        before = _origin.set(f"secateur.{function.__name__}({', '.join(said)})")
        try:
            return function(*arguments, **named)
        finally:
            _origin.reset(before)

    return recording  # type: ignore[return-value]


def _without_secrets(words: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for word in words:
        option, equals, _ = word.partition("=")
        if option in SECRETS and equals:
            kept.append(f"{option}=...")
        else:
            kept.append("..." if kept and kept[-1] in SECRETS else word)
    return kept


def _shown(value: Any) -> str:
    """Python code for a value, or the name of its class in angle brackets."""
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
    elif isinstance(value, Path):
        text = repr(str(value))
    elif isinstance(value, list | tuple):
        inner = ", ".join(map(_shown, value))
        text = f"[{inner}]" if isinstance(value, list) else f"({inner},)" if len(value) == 1 else f"({inner})"
    elif isinstance(value, dict):
        text = "{" + ", ".join(f"{_shown(key)}: {_shown(item)}" for key, item in value.items()) + "}"
    elif is_dataclass(value) and not isinstance(value, type):
        changed = [one.name for one in fields(value) if one.init and getattr(value, one.name) != _default(one)]
        text = f"{type(value).__name__}({', '.join(f'{name}={_shown(getattr(value, name))}' for name in changed)})"
    else:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else f"<{type(value).__name__}>"


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default
