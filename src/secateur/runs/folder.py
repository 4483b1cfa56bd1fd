"""The folder of a run: one owner, one set of settings, one set of inputs.

    inputs = {"model": tensors_fingerprint(model.state_dict()), "data": dataset.fingerprint}
    with run_folder(out, {"command": "prune", "model": path, ...}, inputs) as run:
        ...  # write in `run`; the same command resumes where it was stopped

Inside the block the folder is locked, so that a second process is refused. `config.json` holds the settings that the
run was begun with. A command with other settings is refused, and so are inputs with other contents; inputs may have
moved, so a setting that names their place may differ.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..base.distributed import is_main_process
from ..base.errors import SecateurError
from ..base.files import check_folder, is_left_behind, read_json, remove_left_behind, write_json
from ..base.lock import LOCK, owned
from ..base.origin import origin
from ..base.settings import FREE, differing
from ..base.units import number_of
from ..io.manifest import library_versions
from .tidy import OF_LENGTH, STEPS, make_longer

CONFIG = "config.json"


@contextmanager
def run_folder(out: str | Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[Path]:
    """Lock the run folder `out`: a new one, or that of a run with the same settings and inputs.

    `FREE` settings may differ, and so may the number of steps if the run can be continued (`tidy.make_longer`);
    `config.json` then has the new ones, and with more steps the new command line. `inputs` are fingerprints, by the
    names of the settings that say where the inputs are. Of several processes the main one holds the lock.

    Raises:
        SecateurError: another process holds the lock; or the folder holds something else, or a run with other settings
            or inputs.
    """
    out = Path(out)
    if not is_main_process():
        yield out
        return
    _check_free(out)
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with owned(out):
        remove_left_behind(out)
        _begin(out, plain(settings), dict(inputs))
        yield out


def folder_or_memory(
    out: str | Path | None, settings: Mapping[str, Any], inputs: Callable[[], Mapping[str, str]]
) -> AbstractContextManager[Path | None]:
    """As `run_folder`; without `out` yields None, and nothing is fingerprinted."""
    return nullcontext() if out is None else run_folder(out, settings, inputs())


def refuse_run(out: str | Path) -> None:
    """Refuse to write something else into the folder of a run, or where no folder can be made.

    Raises:
        SecateurError: `out` is a run, or cannot be written.
    """
    check_folder(out)
    if is_run(Path(out)):
        raise SecateurError(f"{out} is the folder of a run, which would be overwritten; choose another --out")


def is_run(folder: Path) -> bool:
    """Whether `folder` holds the config of a run; that of a model has the same name.

    Raises:
        SecateurError: its config is no JSON object.
    """
    return (folder / CONFIG).is_file() and "command" in _config(folder)


def plain(value: Any) -> Any:
    """Convert dataclasses, paths and tuples to what JSON would give back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check_free(out: Path) -> None:
    """Refuse a folder that is not a run; a run killed before it wrote anything counts as one."""
    if not out.exists() or is_run(out):
        return
    if not out.is_dir() or any(path.name != LOCK and not is_left_behind(path, mine=True) for path in out.iterdir()):
        raise SecateurError(f"{out} exists and is not a run of secateur; choose another --out")


def _begin(out: Path, settings: dict[str, Any], inputs: dict[str, str]) -> None:
    """Write `config.json`, or check the existing one."""
    if not (out / CONFIG).is_file():
        write_json(out / CONFIG, settings | {"inputs": inputs} | circumstances())
        return
    before = _config(out)
    known = before.get("inputs")
    if not isinstance(known, dict):
        raise SecateurError(f"{out} was saved from memory, so it cannot be continued; choose another --out")
    others = [name for name in {**inputs, **known} if inputs.get(name) != known.get(name)]
    changed = differing({key: before.get(key) for key in settings}, settings, FREE)
    if STEPS in changed and set(changed) <= OF_LENGTH and not others:
        make_longer(out, before, settings)
        before, changed = before | circumstances(), {}
    if names := [name for name in changed if name not in inputs or name in others]:
        raise SecateurError(
            f"{out} was begun with another {', '.join(names)}; choose another --out, or the same settings"
        )
    if others:
        raise SecateurError(
            f"{out} was begun with another {', '.join(others)}: its contents have changed since; choose another "
            "--out, or restore them"
        )
    write_json(out / CONFIG, before | settings)


def _config(out: Path) -> dict[str, Any]:
    found = read_json(out / CONFIG)
    if not isinstance(found, dict):
        raise SecateurError(f"{out / CONFIG} is no config of a run (it is not a JSON object); choose another folder")
    return found


def circumstances() -> dict[str, Any]:
    """The command line, versions and machine of a run."""
    threads = torch.get_num_threads()
    device = f"{platform.machine()}, {number_of(threads, 'thread')}"
    if torch.accelerator.is_available():
        device = f"{torch.accelerator.current_accelerator()}, {device}"
    return {
        "command_line": origin(),
        "versions": library_versions() | {"python": platform.python_version()},
        "device": device,
    }
