"""Options in a YAML file, one a line, named as on the command line: `--config run.yaml`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..base.errors import SecateurError, first_line

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
        word for name, value in found.items() if not said & {f"--{name}", _no(name)} for word in _words(name, value)
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
        raise SecateurError(f"{path} is no YAML: {first_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise SecateurError(f"{path} holds no options; give lines such as steps: 2000")
    return {name.replace("_", "-"): value for name, value in found.items()}


def _words(name: str, value: Any) -> Iterator[str]:
    """An option as words of the command line."""
    if isinstance(value, bool):
        yield f"--{name}" if value else _no(name)
    elif value is not None or "." in name:
        yield f"--{name}"
        if isinstance(value, Mapping):
            yield from (str(word) for pair in value.items() for word in pair)
        elif isinstance(value, list):
            yield from map(str, value)
        else:
            yield str(value)


def _no(name: str) -> str:
    """The name of the option that turns `name` off."""
    group, dot, own = name.rpartition(".")
    return f"--{group}{dot}no-{own}"
