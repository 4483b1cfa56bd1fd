"""The folder of a run: what it was begun with, and whether the same command may take it up."""

from __future__ import annotations

import dataclasses
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..base.distributed import is_main_process
from ..base.errors import SecateurError
from ..base.files import read_json, remove_left_behind, write_json
from ..base.settings import FREE, differing
from ..io.manifest import library_versions


def start_run(out: str | Path, config: Mapping[str, Any]) -> Path:
    """Make the run folder `out` with its `config.json`, or take up the run that the same settings began there.

    The `FREE` settings may be others, and are then what `config.json` says.

    Raises:
        SecateurError: the folder holds something else, or a run with other settings.
    """
    out = Path(out)
    if not is_main_process():
        return out
    described = plain(config)
    path = out / "config.json"
    if path.is_file():
        before = read_json(path)
        if changed := differing({key: before.get(key) for key in described}, described, FREE):
            raise SecateurError(
                f"{out} was begun with another {', '.join(changed)}; choose another --out, or the same settings"
            )
        remove_left_behind(out)
        write_json(path, before | described)
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SecateurError(f"{out} exists and is no run of secateur; choose another --out")
    device = f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
    if torch.accelerator.is_available():
        device = f"{torch.accelerator.current_accelerator()}, {device}"
    about = {
        "command_line": " ".join(["secateur", *sys.argv[1:]]),
        "versions": library_versions() | {"python": platform.python_version()},
        "device": device,
    }
    write_json(path, described | about)
    return out


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as what JSON gives back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
