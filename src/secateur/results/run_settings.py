"""The settings of a run: what of `config.json` reports read, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base.records import record_of
from .codec import read_result


@dataclass(frozen=True)
class Circumstances:
    """What `config.json` has beside the settings, which differ from command to command."""

    command: str = ""
    command_line: str = ""
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


class RunSettings(dict[str, Any]):
    """All entries of `config.json`; those that reports use have a property, "" or empty where a run has none."""

    @property
    def command(self) -> str:
        """The name of the command or function."""
        return self._text("command")

    @property
    def command_line(self) -> str:
        """The command line or call that began the run."""
        return self._text("command_line")

    @property
    def begun_by(self) -> str:
        """The command line, or else the name of the command."""
        return self.command_line or self.command

    @property
    def model(self) -> str:
        return self._text("model")

    @property
    def reference(self) -> str:
        return self._text("reference")

    @property
    def data(self) -> str:
        return self._text("data")

    @property
    def target(self) -> str:
        return self._text("target")

    @property
    def recipe(self) -> str:
        return self._text("recipe")

    @property
    def criterion(self) -> str:
        return self._text("criterion")

    @property
    def schedule(self) -> str:
        return self._text("schedule")

    @property
    def recovery(self) -> Mapping[str, Any]:
        """The fields of `RecoveryConfig`."""
        found = self.get("recovery")
        return found if isinstance(found, Mapping) else {}

    @property
    def objective(self) -> str:
        """The objective of the recovery."""
        return str(self.recovery.get("objective") or "")

    @property
    def versions(self) -> dict[str, str]:
        return self.get("versions") or {}

    @property
    def validation_captions(self) -> tuple[str, ...]:
        """The prompts or classes of the images that are drawn during training."""
        recovery = self.recovery
        return tuple(map(str, recovery.get("validation_prompts") or recovery.get("validation_classes") or ()))

    def _text(self, key: str) -> str:
        return str(self.get(key) or "")


def read_settings(folder: Path) -> RunSettings:
    """The settings of the run in `folder`; empty without `config.json`.

    Raises:
        SecateurError: `config.json` is damaged.
    """
    path = folder / "config.json"
    found = read_result(dict[str, Any], path) if path.exists() else {}
    record_of(Circumstances, found, path)
    return RunSettings(found)
