"""`secateur record`: write the teacher's book, ahead of recoveries."""

from __future__ import annotations

from pathlib import Path

import secateur

from ..base.console import say
from ..recipes import resolve
from ..recovery import RecoveryConfig
from ..runs.recording import say_book
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
    """Record a dense model's answers once, for recoveries that then do not have to run it.

    Give the folder to `secateur finetune --book`, with the same recovery options. Run the same command again to resume,
    or with more tuples to extend the book. For several processes, start it with torchrun or accelerate launch.

    Args:
        on: the dense model.
        data: the training images: an image folder, parquet, WebDataset shards, datasets:NAME, an .npz with images,
            digits, fashion, or generated (samples of the dense model).
        out: folder of the book.
        book: how many answers, in which dtype.
        recovery: how the recovery will train. Its objective says what is recorded (distillation: outputs; 2ndmatch:
            also growths; first-order: also Jacobian products; features: also hidden states), steps and batch size how
            many; label dropout and flips are drawn now.
        dry_run: print size, time and memory, and stop.
    """
    subject = on.subject()
    settings = resolve("default", recovery=recovery).recovery
    if dry_run:
        say(str(secateur.plan_record(subject, data=data, book=book, recovery=settings)))
        return
    say_book(secateur.record(subject, data=data, book=book, recovery=settings, out=out))
