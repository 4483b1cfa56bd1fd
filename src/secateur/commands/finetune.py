"""`secateur finetune`: recover a pruned model, or train any model further."""

from __future__ import annotations

from pathlib import Path

import secateur

from ..base.console import say
from ..recipes import resolve
from ..recovery import RecoveryConfig
from ..reporting import read_run, summarize
from ..runs.checks import check_finetuning
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
    recovery: RecoveryConfig,
    keep: bool = False,
    dry_run: bool = False,
) -> None:
    """Fine-tune a model; the result is the folder OUT/model, with the averaged (EMA) weights.

    Run the same command again to resume. For several processes, start it with torchrun or accelerate launch.

    Args:
        on: the model.
        data: training images: an image folder, parquet, datasets:NAME, an .npz with images, digits, or generated
            (samples of the dense model).
        out: folder to write to.
        teacher: the dense model, for objectives that match it.
        book: folder of the teacher's answers from `secateur record`, in place of the teacher.
        recovery: how to train.
        keep: keep everything in the folder: duplicates and checkpoints.
        dry_run: print the predicted time and memory, and stop.
    """
    subject, dense = on.subject(), on.other(teacher)
    recovery = resolve("default", recovery=recovery).recovery
    if dry_run:
        dataset = drawn_by(dense, data) or open_data(data, subject)
        answers = None if book is None else opened_book(book, subject, dataset, dense)
        check_finetuning(subject, dataset, recovery, dense, answers)
        work = Work(recovery=recovery, teacher=None if dense is None else dense.model, reads=answers is not None)
        say(str(plan_of(subject, work)))
        return
    secateur.finetune(subject, data=data, teacher=dense, book=book, recovery=recovery, out=out, keep=keep)
    result = "pipeline" if subject.in_pipeline else "model"
    say("\n".join(summarize(read_run(out)).sentences))
    say(f"\n{result:8} {out / result}\nreport   {out / 'report.html'}\nlog      {out / 'recovery' / 'log.jsonl'}")
