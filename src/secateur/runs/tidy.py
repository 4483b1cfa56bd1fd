"""What the folder of a finished run need not keep twice, and how a longer run goes on from one."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..base.console import note
from ..base.errors import SecateurError
from ..base.files import atomic_file
from ..recovery import RecoveryConfig

STEPS = "recovery.steps"
BETWEEN = ("pruned", "compensated")  # models that the recovery began with
OF_MORE_STEPS = ("evaluation", "pipeline", "model")  # what more steps change, the first to go last to be missed


def tidy(folder: Path, recovery: RecoveryConfig, one_shot: bool = True) -> None:
    """Let weights that are the same in two places be one file, and drop what nothing needs any more.

    The models before the recovery go, and so does the last checkpoint, but where a longer run may go on from it.
    """
    for weights in (folder / "model").glob("*.safetensors"):
        for twin in (folder / "pipeline").glob(f"*/{weights.name}"):
            if not twin.samefile(weights) and filecmp.cmp(weights, twin, shallow=False):
                _link(weights, twin)
    for name in BETWEEN:
        shutil.rmtree(folder / name, ignore_errors=True)
    if not goes_on(recovery, one_shot):
        shutil.rmtree(folder / "recovery" / "checkpoints", ignore_errors=True)


def goes_on(recovery: RecoveryConfig, one_shot: bool) -> bool:
    """Whether a run of more steps takes the same first ones, so that it can go on from the last checkpoint."""
    return recovery.lr_schedule == "constant" and one_shot


def make_longer(folder: Path, before: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Make way for more steps than the finished run in `folder` took, whose other settings are the same.

    Raises:
        SecateurError: fewer steps are asked for; or its first steps would have been others, had it been longer.
    """
    done, wanted = before["recovery"]["steps"], asked["recovery"]["steps"]
    if wanted < done:
        raise SecateurError(f"{folder} has {done} steps, and {wanted} are asked for; choose another --out")
    schedule, when = asked["recovery"]["lr_schedule"], asked.get("schedule", "one-shot")
    if schedule != "constant" or when != "one-shot":
        why = f"its learning rate goes down to zero at step {done} ({schedule})"
        why = why if schedule != "constant" else f"its schedule is planned for {done} steps ({when})"
        raise SecateurError(
            f"{folder} cannot go on from {done} to {wanted} steps: {why}; choose another --out, or the same --steps"
        )
    for name in OF_MORE_STEPS:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "recorded.json").unlink(missing_ok=True)  # of a book, which more steps may lengthen
    note(f"{folder} was made by {done} steps; it goes on to {wanted}, and what was measured of it is measured anew")


def _link(source: Path, place: Path) -> None:
    """Make the file at `place` another name of `source`, where the disk can do that."""
    with suppress(OSError, SecateurError), atomic_file(place) as temporary:
        temporary.unlink()
        os.link(source, temporary)
