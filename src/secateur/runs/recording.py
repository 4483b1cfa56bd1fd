"""Recording the teacher's book: answers of a dense model, written once, on which any number of pruned ones can
train."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..base.console import say, shown
from ..base.distributed import is_main_process, require_folder, wait_for_everyone
from ..base.errors import DataError, require
from ..base.files import check_folder, is_left_behind, read_json, remove_left_behind, write_json
from ..base.fingerprint import fingerprint
from ..base.lock import LOCK, owned
from ..base.origin import recorded
from ..base.rules import Count, checked
from ..base.units import number_of
from ..data import ImageDataset
from ..data.conditions import check_conditions, has_null_condition
from ..data.objects import is_random
from ..recipes import finetuning_config
from ..recovery import RecoveryConfig
from ..recovery.accelerator import precision_on
from ..recovery.reading import autocast_on, contents_of, tuples_for
from ..results import Recorded, read_result, write_result
from ..teacher import Book, BookConfig, open_book, write_book
from ..teacher.book import ABOUT, made_from
from .arguments import ModelArguments
from .data import encode_data
from .opening import opened, required
from .subject import Subject

RECORDED = "recorded.json"
SO_FAR = "recording.json"  # the seconds of a recording that is not complete


@recorded
@checked
def record(
    model: Any,
    *,
    data: Any,
    objective: str | None = None,
    steps: Count | None = None,
    book: BookConfig | None = None,
    recovery: RecoveryConfig | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    **arguments: Unpack[ModelArguments],
) -> Book:
    """Record a dense model's answers once, for recoveries that then do not have to run it.

    Give `finetune` the book and the recovery options that it was recorded for. The same call resumes a book that was
    stopped; with more tuples it extends the book.

    Args:
        model: the dense model.
        data: the training samples.
        objective: the objective of the recovery, which says what is recorded: distillation outputs, 2ndmatch also
            growths, first-order also Jacobian products, features also hidden states.
        steps: steps of the recovery; with its batch size they determine how many tuples are recorded.
        book: how many answers, in which dtype.
        recovery: how the recovery will train; label dropout and flips are drawn now.
        out: folder of the book; without it the book is in memory.
        progress: show progress bars and print notes.
        arguments: those of `ModelArguments`.

    Raises:
        SecateurError: bad input, or a folder that holds something else.
    """
    require_folder("record", out)
    settings = finetuning_config(recovery, True, steps, objective)
    with shown(progress), opened(model, data, **arguments) as (subject, found):
        dataset = required(found)
        check_recording(subject, dataset)
        with _owned(out):
            return record_stage(out, subject, encode_data(dataset, subject), book or BookConfig(), settings)


def check_recording(subject: Subject, dataset: ImageDataset) -> None:
    """Check that a teacher's answers to this data can be recorded, before long work starts.

    Raises:
        DataError: the labels do not fit the model; or the data changes when it is read again, and the answers would be
            to other samples.
    """
    check_conditions(subject.model, dataset)
    if is_random(dataset):
        raise DataError(
            "the data changes from one read to the next, and a book of the teacher's answers needs the same samples "
            "again: give data without random augmentation, and recovery.horizontal_flip for flips"
        )


def opened_book(book: Any, subject: Subject, dataset: ImageDataset, teacher: Subject | None = None) -> Book:
    """A book in memory, or read from its folder.

    Raises:
        SecateurError: it is incomplete, or belongs to another teacher, process or data.
    """
    found = book if isinstance(book, Book) else open_book(book, subject.process, dataset, subject.model)
    found.check(subject.process, dataset, None if teacher is None else teacher.model)
    return found


def say_book(book: Book) -> None:
    """Print the size and place of a book."""
    where = "in memory" if book.folder is None else f"in {book.folder}"
    say(f"book     {number_of(book.num_tuples, 'tuple')}, {book.held_out_rows.count:,} held out, {where}")


def _owned(out: str | Path | None) -> AbstractContextManager[None]:
    """Lock the folder of a book: a new one, or one that was begun."""
    if out is None or not is_main_process():
        return nullcontext()
    folder = Path(out)
    check_folder(folder)
    others = [path for path in folder.glob("*") if path.name != LOCK and not is_left_behind(path, mine=True)]
    fits = not others or (folder / ABOUT).is_file()
    require(fits, f"{folder} holds something else than a teacher's book; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    remove_left_behind(folder)
    return owned(folder)


def record_stage(
    folder: str | Path | None,
    subject: Subject,
    dataset: ImageDataset,
    config: BookConfig,
    recovery: RecoveryConfig,
    written: Callable[[], None] = lambda: None,
) -> Book:
    """The book for a recovery; what is missing in `folder` is recorded, by each process a part.

    `written` is called after every chunk.

    Raises:
        DataError: as `check_recording`.
    """
    check_recording(subject, dataset)
    contents = contents_of(recovery, has_null_condition(subject.model, dataset))
    lower = autocast_on(recovery, subject.device)
    count = tuples_for(recovery, config)
    book = write_book(subject.model, subject.process, dataset, contents, config, count, folder, lower, written)
    wait_for_everyone(subject.on_cpu)
    return book


def record_for_run(
    folder: Path | None,
    place: Path | None,
    subject: Subject,
    dataset: ImageDataset,
    config: BookConfig,
    recovery: RecoveryConfig,
) -> tuple[Book, Recorded]:
    """As `record_stage` in `place`, for the run in `folder`; and what its `recorded.json` says of the book.

    A stopped run keeps the seconds of what it has recorded, to which it adds when it is resumed.
    """
    so_far = None if folder is None else folder / SO_FAR
    before = 0.0 if so_far is None or not so_far.is_file() else float(read_json(so_far)["seconds"])
    begun = time.perf_counter()

    def seconds() -> float:
        return round(before + time.perf_counter() - begun, 2)

    def keep_seconds() -> None:
        if so_far is not None and is_main_process():
            write_json(so_far, {"seconds": seconds()})

    book = record_stage(place, subject, dataset, config, recovery, keep_seconds)
    found = recorded_in(folder) or Recorded(book.num_tuples, book.held_out_rows.count, book.bytes, seconds())
    if folder is not None and is_main_process():
        write_result(folder / RECORDED, found)
        (folder / SO_FAR).unlink(missing_ok=True)
    return book, found


def recorded_in(folder: Path | None) -> Recorded | None:
    """What the run in `folder` says of its book, if it has recorded one."""
    path = None if folder is None else folder / RECORDED
    return read_result(Recorded, path) if path is not None and path.is_file() else None


def book_place(
    folder: Path | None,
    cache: Path | None,
    subject: Subject,
    dataset: ImageDataset,
    config: BookConfig,
    recovery: RecoveryConfig,
) -> Path | None:
    """The folder of a run's book; None, for a book in memory, without a run folder.

    In a shared `cache`, runs whose recoveries ask the same of the same teacher, on the same data, share one.
    """
    if folder is None:
        return None
    if cache is None:
        return folder / "book"
    contents = contents_of(recovery, has_null_condition(subject.model, dataset))
    same = replace(config, num_tuples=None, batch_size=1)
    of = made_from(subject.process, dataset, subject.model)
    return cache / "books" / fingerprint([of, repr(contents), repr(same), precision_on(recovery, subject.device)])
