"""Recording: the teacher's book, written once by a dense model and read by any number of its pruned ones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from ..base.console import say, shown
from ..base.distributed import is_main_process
from ..base.errors import require
from ..base.files import check_folder, is_left_behind, remove_left_behind
from ..base.lock import LOCK, owned
from ..base.origin import recorded
from ..base.rules import Count, checked
from ..data import ImageDataset
from ..data.conditions import check_conditions
from ..recovery import RecoveryConfig
from ..teacher import Book, BookConfig, open_book
from ..teacher.book import ABOUT
from .arguments import ModelArguments
from .compression import finetuning
from .data import encode_data
from .opening import opened, required
from .stages import record_stage
from .subject import Subject


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
    """Record a dense model's answers for recoveries to come, which then need neither the model nor its time.

    Give `finetune` the book and the options of recovery that it was recorded for. The same call goes on with a book
    that was stopped, and extends one to more tuples.

    Args:
        model: the dense model.
        data: what will be trained on.
        objective: that will read it: distillation needs outputs alone, 2ndmatch growth too, first-order products of the
            Jacobian, features hidden states.
        steps: of the recovery, which with its batch size say how many tuples there are.
        book: how many tuples, in which dtype.
        recovery: how will be trained: label dropout and flips are drawn now.
        out: folder; without one the book is in memory.
        progress: show how far it is.
        arguments: as `ModelArguments` has them.

    Raises:
        SecateurError: bad input, or a folder that holds something else; always one clear line.
    """
    settings = finetuning(recovery, True, steps, objective)
    with shown(progress), opened(model, data, **arguments) as (subject, found):
        dataset = required(found)
        check_conditions(subject.model, dataset)
        with _owned(out):
            return record_stage(out, subject, encode_data(dataset, subject), book or BookConfig(), settings)


def opened_book(book: Any, subject: Subject, dataset: ImageDataset, teacher: Subject | None = None) -> Book:
    """A book in memory, or read from its folder.

    Raises:
        SecateurError: it is not whole, or of another teacher, process or data.
    """
    found = book if isinstance(book, Book) else open_book(book, subject.process, dataset, subject.model)
    found.check(subject.process, dataset, None if teacher is None else teacher.model)
    return found


def say_book(book: Book) -> None:
    """Print what there is."""
    where = "in memory" if book.folder is None else f"in {book.folder}"
    say(f"book     {book.num_tuples:,} tuples, {book.held_out_rows.count:,} held out, {where}")


def _owned(out: str | Path | None) -> AbstractContextManager[None]:
    """Own the folder of a book: a new one, or one that was begun."""
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
