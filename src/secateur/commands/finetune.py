"""`secateur finetune`: recover a pruned model, or train any model further."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import secateur

from ..base.console import say
from ..recovery import RecoveryConfig
from ..runs.checks import check_finetuning
from ..runs.compression import given
from ..runs.data import drawn_by, open_data
from ..runs.plan import plan_of
from ..runs.recording import opened_book
from ..runs.timing import Work
from .options import Model


def finetune(
    on: Model,
    *,
    data: str,
    out: Path,
    teacher: str | None = None,
    book: Path | None = None,
    objective: str | None = None,
    steps: int | None = None,
    recovery: RecoveryConfig,
    dry_run: bool = False,
) -> None:
    """Fine-tune a model; the result, with EMA weights, is the folder OUT/model.

    Run the same command again to resume. Start it with torchrun or accelerate launch for several processes.

    Args:
        on: the model.
        data: training images: an image folder, parquet, datasets:NAME, an .npz with images, digits,
            or generated, for what the dense model draws itself.
        out: folder to write to.
        teacher: the dense model, for objectives that match it.
        book: its answers, which `secateur record` wrote, in its place.
        objective: denoising, distillation, first-order or 2ndmatch; the default is the recovery options' own.
        steps: optimizer steps; the default is the recovery options' own.
        recovery: how to train.
        dry_run: print the predicted time and memory, and stop.
    """
    subject, dense = on.subject(), on.other(teacher)
    settings = replace(recovery, **given({"steps": steps, "objective": objective}))
    if dry_run:
        dataset = drawn_by(dense, data) or open_data(data, subject)
        answers = None if book is None else opened_book(book, subject, dataset, dense)
        check_finetuning(subject, dataset, settings, dense, answers)
        work = Work(recovery=settings, teacher=None if dense is None else dense.model, reads=answers is not None)
        say(str(plan_of(subject, work)))
        return
    secateur.finetune(subject, data=data, teacher=dense, book=book, recovery=settings, out=out)
    say(f"model   {out / 'model'}\nlog     {out / 'recovery' / 'log.jsonl'}")
