"""Rules for values of settings, as annotations: `steps: Annotated[int, at_least(1)] = 500`.

Types are rules, too: an `int` is a 64-bit integer, a `float` is finite, a `Literal` has one of its values.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from reprlib import repr as shortened
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from typing_extensions import Unpack

from .errors import SecateurError

LARGEST = 2**63  # what torch, arrays and files can count to
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """A condition on the value of a setting, and words for what is wanted: "give ..."."""

    wanted: str
    holds: Callable[[Any], bool]


def at_least(least: float, why: str = "") -> Rule:
    """`least` or more."""
    return Rule(f"at least {least:g}{why}", lambda value: value >= least)


def above(limit: float) -> Rule:
    """More than `limit`."""
    return Rule(f"more than {limit:g}", lambda value: value > limit)


def within(least: float, most: float) -> Rule:
    """From `least` to `most`, both included."""
    return Rule(f"a number from {least:g} to {most:g}", lambda value: least <= value <= most)


def from_to_below(least: float, limit: float) -> Rule:
    """From `least`, included, to `limit`, which is not."""
    return Rule(f"a number from {least:g} to below {limit:g}", lambda value: least <= value < limit)


Seed = Annotated[int, Rule("a whole number from 0 to below 2^63", lambda value: 0 <= value < LARGEST)]
Count = Annotated[int, at_least(1)]
ONE_OR_MORE = Rule("one or more", lambda values: len(values) > 0)


def check_fields(group: str, config: Any) -> None:
    """Check every field of a dataclass by its annotation.

    Raises:
        SecateurError: naming the field as "`group` field", its value and what to give.
    """
    kind: Any = type(config)
    for name, hint in _hints(kind).items():
        check(f"{group} {name}", getattr(config, name), hint)


def checked(function: Function) -> Function:
    """Check the arguments of `function` by their annotations when it is called.

    Keyword arguments taken as `Unpack` of a `TypedDict` appear one by one in its signature.

    Raises:
        SecateurError: naming the argument, its value and what to give.
    """

    @functools.wraps(function)
    def checking(*arguments: Any, **named: Any) -> Any:
        hints = _hints_of_arguments(function)
        for name, value in _signature(function).bind(*arguments, **named).arguments.items():
            check(name, value, hints.get(name, Any))
        return function(*arguments, **named)

    checking.__signature__ = _signature(function)  # type: ignore[attr-defined]
    return checking  # type: ignore[return-value]


def check(what: str, value: object, hint: Any) -> None:
    """Raise `SecateurError` unless `value` conforms to the annotation `hint`."""
    if (advice := _advice(value, hint)) is not None:
        raise SecateurError(f"{what} is {shortened(value)}; {advice}")


@functools.cache
def _hints(about: Callable[..., Any]) -> Mapping[str, Any]:
    return get_type_hints(about, include_extras=True)


@functools.cache
def _hints_of_arguments(function: Callable[..., Any]) -> Mapping[str, Any]:
    hints = dict(_hints(function))
    for name, hint in list(hints.items()):
        if get_origin(hint) is Unpack:
            hints |= _hints(get_args(hints.pop(name))[0])
    return hints


@functools.cache
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of `function`, with the arguments of a `TypedDict` that it unpacks after its own."""
    signature = inspect.signature(function)
    own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(own) == len(signature.parameters):
        return signature
    names = [name for name in _hints_of_arguments(function) if name not in ("return", *signature.parameters)]
    kind = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(name, kind, default=None, annotation=_hints_of_arguments(function)[name]) for name in names
    ]
    return signature.replace(parameters=[*own, *shared])


def _advice(value: Any, hint: Any) -> str | None:
    """What to give instead of `value`; None if it conforms to `hint`."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _advice(value, inner[0]) or next(
            (f"give {rule.wanted}" for rule in inner[1:] if isinstance(rule, Rule) and not rule.holds(value)), None
        )
    if kind in (Union, types.UnionType):
        return _advice_of_union(value, inner)
    if kind is Literal:
        return None if value in inner else _advice_of_names(value, inner)
    if kind is Sequence and isinstance(value, str):
        return f'give a list, such as ["{value}"]'
    if kind is tuple:
        return _advice_of_tuple(value, inner)
    if kind is dict:
        if not isinstance(value, dict):
            return "give numbers by name"
        return next((found for item in value.values() if (found := _advice(item, inner[1]))), None)
    return _advice_of_class(value, hint)


def _advice_of_class(value: Any, hint: Any) -> str | None:
    if hint is Any:
        return None
    if hint is int:
        return None if type(value) is int and abs(value) < LARGEST else "give a whole number below 2^63"
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return None if number and abs(value) <= sys.float_info.max else "give a finite number"
    if hint is Path:
        return None if isinstance(value, str | os.PathLike) else "give a path"
    if isinstance(hint, type) and not isinstance(value, hint):
        return f"give {NAMES.get(hint, f'a {hint.__name__}')}"
    return None


NAMES = {bool: "True or False", str: "a text", types.NoneType: "none"}


def _advice_of_union(value: Any, kinds: tuple[Any, ...]) -> str | None:
    found = []
    for kind in kinds:  # no further than the first that fits: a protocol asks for attributes, and some of those warn
        if (advice := _advice(value, kind)) is None:
            return None
        found.append(advice)
    others = [advice for advice, kind in zip(found, kinds, strict=True) if kind is not types.NoneType]
    return f"{others[0]}, or none" if types.NoneType in kinds else others[0]


def _advice_of_names(value: object, names: tuple[Any, ...]) -> str:
    near = get_close_matches(str(value), [str(name) for name in names], n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}give {' or '.join(map(str, names))}"


def _advice_of_tuple(value: Any, kinds: tuple[Any, ...]) -> str | None:
    if not isinstance(value, tuple | list):
        return "give a tuple"
    if kinds[-1:] == (...,):
        kinds = kinds[:1] * len(value)
    if len(value) != len(kinds):
        return f"give {len(kinds)} values"
    return next((found for item, kind in zip(value, kinds, strict=True) if (found := _advice(item, kind))), None)
