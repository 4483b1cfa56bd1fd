"""The folder of a run: one owner, one set of settings, one set of inputs.

    inputs = {"model": tensors_fingerprint(model.state_dict()), "data": dataset.fingerprint}
    with run_folder(out, {"command": "prune", "model": path, ...}, inputs) as run:
        ...  # write in `run`; the same command resumes where it was stopped

Inside the block the folder is locked, so that a second process is refused. `config.json` says what the run was begun
with; a command with other settings is refused, and so are other inputs, known by their contents. Where they may lie
elsewhere than at first, so may the settings of the same names.
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
from ..io.manifest import library_versions
from .tidy import STEPS, make_longer

CONFIG = "config.json"


@contextmanager
def run_folder(out: str | Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Iterator[Path]:
    """Own the run folder `out`: a new one, or that of a run that the same settings and inputs began.

    The `FREE` settings may be others, and so may the number of steps where a run can go on (`tidy.make_longer`); they
    are then what `config.json` says. `inputs` are fingerprints, by the names of
    the settings that say where they lie. Of several processes the main one owns the folder.

    Raises:
        SecateurError: another process owns the folder; it holds something else, or a run with other settings or inputs.
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
    """As `run_folder`; without `out` there is none, and nothing is fingerprinted."""
    return nullcontext() if out is None else run_folder(out, settings, inputs())


def refuse_run(out: str | Path) -> None:
    """Refuse to write something else into the folder of a run, or where no folder can be.

    Raises:
        SecateurError: `out` is a run, or cannot be written.
    """
    check_folder(out)
    if (Path(out) / CONFIG).is_file() and "command" in _config(Path(out)):
        raise SecateurError(f"{out} is the folder of a run, which would be overwritten; choose another --out")


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as what JSON gives back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _check_free(out: Path) -> None:
    """Refuse what is no run; a run that was killed before it wrote anything is one."""
    if not out.exists() or (out / CONFIG).is_file():
        return
    if not out.is_dir() or any(path.name != LOCK and not is_left_behind(path, mine=True) for path in out.iterdir()):
        raise SecateurError(f"{out} exists and is no run of secateur; choose another --out")


def _begin(out: Path, settings: dict[str, Any], inputs: dict[str, str]) -> None:
    """Write `config.json`, or check the one that is there."""
    if not (out / CONFIG).is_file():
        write_json(out / CONFIG, settings | {"inputs": inputs} | circumstances())
        return
    before = _config(out)
    known = before.get("inputs")
    known = known if isinstance(known, dict) else {}
    others = [name for name in {**inputs, **known} if inputs.get(name) != known.get(name)]
    changed = differing({key: before.get(key) for key in settings}, settings, FREE)
    if list(changed) == [STEPS] and not others:
        make_longer(out, before, settings)
        changed = {}
    if names := [name for name in changed if name not in inputs or name in others]:
        raise SecateurError(
            f"{out} was begun with another {', '.join(names)}; choose another --out, or the same settings"
        )
    if others:
        raise SecateurError(
            f"{out} was begun with another {', '.join(others)}: what is there now has other contents; choose another "
            "--out, or put back what was there"
        )
    write_json(out / CONFIG, before | settings)


def _config(out: Path) -> dict[str, Any]:
    found = read_json(out / CONFIG)
    if not isinstance(found, dict):
        raise SecateurError(f"{out / CONFIG} is not of a run of secateur: it is no JSON object; choose another folder")
    return found


def circumstances() -> dict[str, Any]:
    """What was written to begin a run, and what it runs on."""
    device = f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
    if torch.accelerator.is_available():
        device = f"{torch.accelerator.current_accelerator()}, {device}"
    return {
        "command_line": origin(),
        "versions": library_versions() | {"python": platform.python_version()},
        "device": device,
    }
