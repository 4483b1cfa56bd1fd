"""Errors for people: what was wrong, where, and what to do. The command line prints them as one line."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_args


class SecateurError(Exception):
    """Base class of every error a user can cause or fix. Its message is one clear line."""


class DataError(SecateurError):
    """Images, labels or arrays that cannot be used."""


class ModelError(SecateurError):
    """A model folder that is missing, truncated, hostile, or of an unknown architecture."""


class StructureError(SecateurError, ValueError):
    """A model whose structure is not known, or a cut or a pattern that does not fit it."""


class TargetError(SecateurError):
    """A size or a speed that cannot be parsed or reached."""


class TrainingError(SecateurError):
    """A run that cannot continue: a loss that is not finite, a checkpoint that does not fit."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name if there is none."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch raised `error` because memory, of any device, did not suffice."""
    return any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory"))


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether torch raised `error` because another process does not respond."""
    words = ("closed by peer", "reset by peer", "gloo/transport", "Socket Timeout", "NCCL error", "NCCL communicator")
    return type(error).__module__ == "torch.distributed" or any(each in str(error) for each in words)


def require(condition: bool, message: str) -> None:
    """Raise `SecateurError(message)` unless `condition` holds."""
    if not condition:
        raise SecateurError(message)


def require_one_of(what: str, value: object, choices: Any) -> None:
    """Raise `SecateurError` unless `value` of the setting `what` is one of the `Literal` type `choices`."""
    require(value in get_args(choices), f"{what} is {value!r}; give {' or '.join(get_args(choices))}")


def require_known(what: str, name: str, names: Iterable[str]) -> None:
    """Raise `SecateurError` unless `name` is one of `names`; the message gives the nearest of them, and all."""
    known = list(names)
    if name in known:
        return
    near = get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise SecateurError(f"there is no {what} called {name!r}; {meant}there are {', '.join(known) or 'none'}")
