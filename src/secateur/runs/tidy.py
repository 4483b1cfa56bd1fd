"""Tidying the folder of a finished run, and continuing a run to more steps than it was begun with."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from ..base.console import note
from ..base.errors import SecateurError
from ..base.files import atomic_file
from ..base.records import record_of
from ..base.units import number_of
from ..recovery import RecoveryConfig
from ..recovery.reading import tuples_for
from ..teacher import BookConfig

STEPS = "recovery.steps"
OF_LENGTH = {STEPS, "recovery.warmup_steps"}  # settings that differ between a run and a longer one
BETWEEN = ("pruned", "compensated")  # models before recovery
OF_MORE_STEPS = ("evaluation", "pipeline", "model")  # results that more steps change, in the order of removal


class Length(msgspec.Struct):
    """What the settings of a run say of how long it trains."""

    steps: int
    warmup_steps: int
    batch_size: int


class Trained(msgspec.Struct):
    """What a longer run reads of a run's `config.json`; `book` holds options, or the book given to finetune."""

    recovery: Length
    target: str = ""
    schedule: str = "one-shot"
    book: dict[str, Any] | str | None = None

    @property
    def tuples(self) -> int:
        """The number of tuples in a book that the run records."""
        drawn = RecoveryConfig(steps=self.recovery.steps, batch_size=self.recovery.batch_size)
        return tuples_for(drawn, BookConfig(self.book["num_tuples"] if isinstance(self.book, dict) else None))


def tidy(folder: Path, recovery: RecoveryConfig, one_shot: bool = True) -> None:
    """Make equal weight files one file on disk, and remove what is no longer needed.

    The models before recovery are removed, and so is the last checkpoint unless a longer run could continue from it.
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
    """Whether a longer run would begin with the same steps, so that it can continue from the last checkpoint."""
    return recovery.lr_schedule == "constant" and one_shot


def make_longer(folder: Path, before: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Prepare the run in `folder` for more steps than it was begun with, with all other settings the same.

    Raises:
        SecateurError: fewer steps are asked for; or a longer run would have begun with other steps; or the settings in
            the folder are damaged.
    """
    run, longer = record_of(Trained, before, folder / "config.json"), msgspec.convert(asked, Trained)
    planned, wanted = run.recovery.steps, longer.recovery.steps
    rise, longer_rise = run.recovery.warmup_steps, longer.recovery.warmup_steps
    if wanted < planned:
        raise SecateurError(
            f"{folder} was begun with {number_of(planned, 'step')}, and --steps asks for {wanted}; choose another --out"
        )
    schedule, records = asked["recovery"]["lr_schedule"], (folder / "recorded.json").is_file()
    why = ""
    if schedule != "constant":
        why = f"its learning rate goes down to zero at step {planned} ({schedule})"
    elif longer.schedule != "one-shot":
        why = f"its schedule is planned for {number_of(planned, 'step')} ({longer.schedule})"
    elif longer.target.startswith("latency") and not (folder / "pruned").is_dir():
        why = "its cut was found by measuring latencies, which differ from time to time, and only --keep keeps it"
    elif rise != longer_rise:
        why = f"its learning rate rises for {number_of(rise, 'step')}, and would for {longer_rise}"
    elif records and run.tuples != longer.tuples:
        why = f"it trains on a book of {number_of(run.tuples, 'tuple')}, and would on {longer.tuples:,}"
    if why:
        raise SecateurError(
            f"{folder} was begun with {number_of(planned, 'step')} and cannot be continued to {wanted}: {why}; choose "
            f"another --out, or train its result further with finetune {folder / 'model'}"
        )
    for name in OF_MORE_STEPS:
        shutil.rmtree(folder / name, ignore_errors=True)
    note(f"{folder} was begun with {number_of(planned, 'step')}; it is continued to {wanted}, and measured again")


def _link(source: Path, place: Path) -> None:
    """Make the file at `place` a hard link to `source`, if the disk supports that."""
    with suppress(OSError, SecateurError), atomic_file(place) as temporary:
        temporary.unlink()
        os.link(source, temporary)
