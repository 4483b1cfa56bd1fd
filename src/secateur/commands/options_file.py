"""Options in a YAML file, one a line, named as on the command line: `--config run.yaml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import SecateurError, first_line
from .renamed import with_present_names

OPTION = "--config"


def with_file(options: Sequence[str]) -> tuple[list[str], str | None]:
    """The `options` of the command line, followed by those of the file that `--config` names, if any; and its `model`.

    The command line overrides the file. Only the parser knows whether it has a MODEL, so the file's is its default.

    Raises:
        SecateurError: the file cannot be read, or does not hold options.
    """
    own, path = _without(list(options))
    if path is None:
        return own, None
    said = {word.partition("=")[0].replace("_", "-") for word in own}  # both spellings are taken
    found = _read(Path(path))
    model = found.pop("model", None)
    words = [
        word for name, value in found.items() if not said & {f"--{name}", _not(name)} for word in _words(name, value)
    ]
    return [*own, *words], None if model is None else str(model)


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
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise SecateurError(
            f"{path}{where} is no YAML: {getattr(error, 'problem', None) or first_line(error)}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SecateurError(f"{path} holds no options; give lines such as steps: 2000")
    return {_present(name): value for name, value in _flat(found)}


def _flat(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options, those of a nested group by their dotted names; a mapping under a dotted name is a value."""
    for name, value in options.items():
        if isinstance(value, Mapping) and "." not in name:
            yield from ((f"{name}.{inner}", each) for inner, each in value.items())
        else:
            yield name, value


def _present(name: str) -> str:
    """The option's name as it is now, with hyphens."""
    (word,) = with_present_names([f"--{name.replace('_', '-')}"])
    return word.removeprefix("--")


def _words(name: str, value: Any) -> Iterator[str]:
    """An option as words of the command line."""
    if isinstance(value, bool):
        yield f"--{name}" if value else _not(name)
    elif value is not None or "." in name:
        yield f"--{name}"
        if isinstance(value, Mapping):
            yield from (str(word) for pair in value.items() for word in pair)
        elif isinstance(value, list):
            yield from map(str, value)
        else:
            yield str(value)


def _not(name: str) -> str:
    """The option that means the opposite of `name`."""
    group, dot, own = name.rpartition(".")
    opposite = own.removeprefix("no-") if own.startswith("no-") else f"no-{own}"
    return f"--{group}{dot}{opposite}"
