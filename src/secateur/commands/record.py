"""`secateur record`: the teacher's book, ahead of recoveries."""

from __future__ import annotations

from pathlib import Path

import secateur

from ..base.console import say
from ..recovery import RecoveryConfig
from ..runs.compression import resolve
from ..runs.plan import plan_of
from ..runs.recording import say_book
from ..runs.timing import Work
from ..teacher import BookConfig
from .options import Model


def record(
    on: Model,
    *,
    data: str,
    out: Path,
    book: BookConfig,
    recovery: RecoveryConfig,
    dry_run: bool = False,
) -> None:
    """Record a dense model's answers, once, for recoveries that then need neither the model nor its time.

    Give the folder to `secateur finetune --book`, with the same options of recovery. Stopped, the same command goes on;
    with more tuples it extends the book. Start it with torchrun or accelerate launch for several processes.

    Args:
        on: the dense model.
        data: what will be trained on: an image folder, parquet, datasets:NAME, an .npz with images, digits,
            or generated, for what the dense model draws itself.
        out: folder of the book.
        book: how many tuples, in which dtype.
        recovery: how will be trained: steps and batch size say how many tuples there are; distillation needs outputs
            alone, 2ndmatch growth too, first-order products of the Jacobian, features hidden states; label dropout and
            flips are drawn now.
        dry_run: print size, time and memory, and stop.
    """
    subject = on.subject()
    settings = resolve("default", recovery=recovery).recovery
    if dry_run:
        say(str(plan_of(subject, Work(book=(book, settings)))))
        return
    say_book(secateur.record(subject, data=data, book=book, recovery=settings, out=out))
