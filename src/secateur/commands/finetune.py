"""`secateur finetune`: recover a pruned model, or train any model further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import secateur

from ..base.console import say
from ..recipes import resolve
from ..recovery import RecoveryConfig
from ..reporting import read_run, summarize
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
        data: training images: an image folder, parquet, WebDataset shards, datasets:NAME, an .npz with images, digits,
            fashion, or generated (samples of the dense model).
        out: folder to write to.
        teacher: the dense model, for objectives that match it.
        book: folder of the teacher's answers from `secateur record`, in place of the teacher.
        recovery: how to train.
        keep: keep everything in the folder: duplicates and checkpoints.
        dry_run: print the predicted time and memory, and stop.
    """
    subject, dense = on.subject(), on.other(teacher)
    recovery = resolve("default", recovery=recovery).recovery
    options: dict[str, Any] = {"data": data, "teacher": dense, "book": book, "recovery": recovery}
    if dry_run:
        say(str(secateur.plan_finetune(subject, **options)))
        return
    secateur.finetune(subject, **options, out=out, keep=keep)
    result = "pipeline" if subject.in_pipeline else "model"
    say("\n".join(summarize(read_run(out)).sentences))
    say(f"\n{result:8} {out / result}\nreport   {out / 'report.html'}\nlog      {out / 'recovery' / 'log.jsonl'}")
