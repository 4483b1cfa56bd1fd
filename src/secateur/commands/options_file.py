"""Options in a YAML file, one a line, named as on the command line: `--config run.yaml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..base.console import note
from ..base.errors import SecateurError, first_line
from .renamed import with_present_names

OPTION = "--config"
NUMBERS_BY_NAME = "recovery.weights"  # the one option whose value is a mapping


@dataclass(frozen=True)
class Options:
    """The words of a command line, followed by those of the file that it names, if any.

    Only the parser knows whether a command has a MODEL, so the file's `model` is its default.
    """

    words: list[str]
    file: Path | None = None
    model: str | None = None


def with_file(options: Sequence[str]) -> Options:
    """The `options` of the command line and of the file that `--config` names, by their present names.

    The command line overrides the file.

    Raises:
        SecateurError: the file cannot be read, or does not hold options.
    """
    own, path = _without(list(options))
    own = with_present_names(own)
    if path is None:
        return Options(own)
    said = {_turned_on(word.partition("=")[0].replace("_", "-")) for word in own}  # both spellings are taken
    found = _read(Path(path))
    model = found.pop("model", None)
    words: list[str] = []
    for name, value in found.items():
        option = with_present_names(list(_words(name, value)))
        words += option if option and _turned_on(option[0]) not in said else []
    return Options([*own, *words], Path(path), None if model is None else str(model))


@contextmanager
def named_in(file: Path | None) -> Iterator[None]:
    """Say of errors in the block, about options, that `file` gives some of them."""
    also = f"some of the options are those of {file}"
    try:
        yield
    except SecateurError as error:
        raise error if file is None else SecateurError(f"{error} ({also})") from error
    except SystemExit as ended:  # of the parser, which has printed the error, or the help
        if file is not None and ended.code:
            note(f"secateur: {also}")
        raise


def as_yaml(options: Mapping[str, Any]) -> str:
    """The YAML text of `options` by name, without those that are None or empty: parts that a recipe leaves out."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
    kept = {name: value for name, value in plain.items() if value is not None and value not in ([], {})}
    return yaml.safe_dump(kept, sort_keys=False, default_flow_style=None, allow_unicode=True)


def _without(options: list[str]) -> tuple[list[str], str | None]:
    """The options without `--config`, and the file that it names, if any."""
    for place, word in enumerate(options):
        name, equals, value = word.partition("=")
        if name == OPTION:
            if not equals and place + 1 == len(options):
                raise SecateurError("--config names no file; give --config FILE")
            rest = options[place + (1 if equals else 2) :]
            return options[:place] + rest, value if equals else options[place + 1]
    return options, None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SecateurError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.context_mark or error.problem_mark  # first of where the part begins that has no end
        place = "" if mark is None else f", line {mark.line + 1},"
        raise SecateurError(f"{path}{place} is no YAML: {error.problem or first_line(error)}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SecateurError(f"{path} is no YAML: {first_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SecateurError(f"{path} holds no options; give lines such as steps: 2000")
    options = {name.replace("_", "-"): value for name, value in found.items()}
    for name, value in options.items():
        if isinstance(value, Mapping) and name != NUMBERS_BY_NAME:
            inner = next((f", such as {name}.{key}: {of}" for key, of in value.items()), "")
            raise SecateurError(f"{path} has a group {name}; give each option of it a line of its own{inner}")
    return options


def _words(name: str, value: Any) -> Iterator[str]:
    """An option as words of the command line."""
    if isinstance(value, bool):
        yield f"--{name}" if value else _no(name)
    elif value is not None or "." in name:
        yield f"--{name}"
        if isinstance(value, Mapping):  # of NUMBERS_BY_NAME
            yield from (str(word) for pair in value.items() for word in pair)
        elif isinstance(value, list):
            yield from map(str, value)
        else:
            yield str(value)


def _no(name: str) -> str:
    """The option that turns `name` off."""
    group, dot, own = name.rpartition(".")
    return f"--{group}{dot}no-{own}"


def _turned_on(option: str) -> str:
    """The opposite of an option that turns something off; any other unchanged."""
    group, dot, own = option.removeprefix("--").rpartition(".")
    return f"--{group}{dot}{own.removeprefix('no-')}" if option.startswith("--") else option
