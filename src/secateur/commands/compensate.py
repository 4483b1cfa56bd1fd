"""`secateur compensate`: refit a pruned model to its dense one in closed form."""

from __future__ import annotations

from pathlib import Path

import secateur

from ..base.console import say
from ..compensation import CompensationConfig
from ..results import Compensation, read_result
from .options import Model


def compensate(on: Model, *, reference: str, data: str, out: Path, compensation: CompensationConfig) -> None:
    """Refit a pruned model to the dense one that it was cut from, without training; the result is OUT/compensated.

    Takes seconds to minutes, and no gradients. Of a pipeline, the whole is written to OUT/pipeline. Run the same
    command again to resume.

    Args:
        on: the pruned model.
        reference: the dense model that it was cut from.
        data: calibration images: an image folder, parquet, WebDataset shards, datasets:NAME, an .npz with images,
            digits, fashion, or generated (samples of the dense model).
        out: folder to write to.
        compensation: options of the refit.
    """
    subject = on.subject()
    secateur.compensate(subject, on.other(reference), data=data, compensation=compensation, out=out)
    for sentence in read_result(Compensation, out / "compensation.json").sentences():
        say(sentence)
    say(f"model   {out / 'compensated'}\nreport  {out / 'report.html'}")
    if subject.in_pipeline:
        say(f"pipeline {out / 'pipeline'}")
