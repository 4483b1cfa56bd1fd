"""Whether a recovery asks the teacher's network, or reads answers that are recorded before it begins.

Answers are recorded if the recipe or the user says so, and by themselves where recovery would not fit on the device
beside the teacher.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ..base.console import note
from ..base.devices import device_memory, has_own_memory
from ..base.distributed import from_main, is_main_process, wait_for_everyone
from ..base.files import read_json
from ..base.rows import remove_rows
from ..base.units import format_count
from ..data import ImageDataset
from ..data.objects import is_random
from ..recipes import Recipe
from ..recovery import RecoveryConfig
from ..recovery.checkpoints import newest_checkpoint
from ..recovery.memory import reason_for_book
from ..recovery.reading import book_size
from ..results import CutResult
from ..teacher import Book, BookConfig
from ..teacher.book import require_noisy_samples
from .memory import pruned_to
from .recording import record_for_run
from .subject import Subject

LARGEST_BOOK = 50e9  # bytes; latents of images stay below, those of clips do not
RESUMED = "as when the run was begun"


def as_recordable(settings: Recipe, subject: Subject, dataset: ImageDataset | None, name: str = "recovery") -> Recipe:
    """`settings`, without a book that would take more than `LARGEST_BOOK` bytes, or of data that changes when it is
    read again: then the dense model is asked live.

    The size alone decides, and not the free disk, so that a run is resumed as it was begun. `name` is for the note that
    says so.

    Raises:
        SecateurError: the network is called by functions of its user, and has no noisy samples.
    """
    if not settings.records:
        return settings
    require_noisy_samples(subject.process)
    if is_random(dataset):
        note(
            f"{name}: the data changes from one read to the next, so the teacher is asked live; for a book of its "
            "answers give data without random augmentation, and recovery.horizontal_flip"
        )
        return replace(settings, records=False)
    _, size = book_size(subject.model, settings.recovery, settings.book, subject.device)
    if size <= LARGEST_BOOK:
        return settings
    note(
        f"{name}: a book of the teacher's answers would take {format_count(size)}B, so the teacher is asked live; "
        "fewer book.num_tuples make one that is recorded"
    )
    return replace(settings, records=False)


def why_recipe_records(settings: Recipe, subject: Subject, cut: CutResult | None, folder: Path | None) -> str | None:
    """Why a compression records the teacher's answers although its recipe does not say so; None if it does not.

    Args:
        settings: the recipe. Only what is pruned in one shot is recovered without the dense model.
        subject: the dense model.
        cut: the planned cut; None if it is not known yet.
        folder: of the run, or where it may be begun; None for a run in memory.

    Raises:
        TrainingError: recovery.memory is auto, and nothing makes the recovery fit.
    """
    if settings.records or settings.schedule != "one-shot":
        return None
    return why_record(partial(pruned_to, subject, cut), subject, settings.recovery, settings.book, folder)


def why_record(
    student: Callable[[], nn.Module],
    teacher: Subject,
    recovery: RecoveryConfig,
    book: BookConfig,
    folder: Path | None,
) -> str | None:
    """Why the answers of `teacher` must be recorded for the recovery of what `student` returns; None if they need not.

    A run that is resumed goes on as it was begun. Answers that are too large to be kept are not recorded.
    """
    checkpoint = None if folder is None else newest_checkpoint(folder / "recovery")
    if checkpoint is not None:
        return None if read_json(checkpoint / "state.json")["settings"]["book"] is None else RESUMED
    if not has_own_memory(teacher.device):  # a book makes no room where both are in one memory
        return None
    reason = reason_for_book(student(), teacher.model, teacher.process, recovery, teacher.device)
    if reason is None:
        return None
    _, size = book_size(teacher.model, recovery, book, teacher.device)
    return reason if 2 * size < _room(folder) else None


def agreed(reason: str | None, on_cpu: bool) -> str | None:
    """The main process's reason, in all processes: their devices may differ. It is printed."""
    wait_for_everyone(on_cpu)
    reason = from_main(lambda: reason)
    if reason is not None:
        note(f"recovery: the teacher's answers are recorded before it: {reason}")
    return reason


@contextmanager
def taught(
    subject: Subject,
    dense: Subject | None,
    book: Book | None,
    dataset: ImageDataset,
    recovery: RecoveryConfig,
    folder: Path | None,
) -> Iterator[nn.Module | Book | None]:
    """The teacher of a recovery of `subject`: its `book`, if one was given; else the network of `dense`, or a book of
    its answers, recorded now, for whose use the network leaves the device."""
    is_finished = folder is not None and (folder / "model").is_dir()
    if book is not None or dense is None or is_finished:
        yield book or (None if dense is None else dense.model)
        return
    reason = why_record(lambda: subject.model, dense, recovery, BookConfig(), folder)
    if agreed(reason, subject.on_cpu) is None:
        yield dense.model
        return
    place = None if folder is None else folder / "book"
    found, _ = record_for_run(folder, place, dense, dataset, BookConfig(), recovery)
    with off_the_device(dense.model, when=True):
        yield found
    if place is not None and is_main_process():
        remove_rows(place)


@contextmanager
def off_the_device(model: nn.Module, when: bool) -> Iterator[None]:
    """Move `model` off the device inside the block, where it is not used, if `when` holds."""
    device = next(model.parameters()).device
    if when:
        model.to("cpu")
    try:
        yield
    finally:
        model.to(device)


def _room(folder: Path | None) -> int:
    """Bytes that a book may take: of the disk of `folder`, or of the machine's memory."""
    if folder is None:
        return device_memory(torch.device("cpu"))
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
