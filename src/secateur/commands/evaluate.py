"""`secateur evaluate`: measure size, speed and sample quality of a model, alone or against its dense base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import secateur

from ..base.console import say
from ..base.precisions import PrecisionName
from ..evaluation import EvaluationConfig
from ..runs.run import noted
from .options import Model


def evaluate(
    on: Model,
    *,
    out: Path,
    data: str | None = None,
    reference: str | None = None,
    evaluation: EvaluationConfig,
    precisions: tuple[PrecisionName, ...] = (),
    dry_run: bool = False,
) -> None:
    """Evaluate a model; with a reference, also how much its images differ from the reference's from the same noise.

    Run the same command again to resume. `torchrun --nproc_per_node 2 -m secateur evaluate` divides the sampling
    between processes, which changes no sample.

    Args:
        on: the model.
        out: folder to write to.
        data: real images: an image folder, parquet, WebDataset shards, datasets:NAME, an .npz with images, digits, or
            fashion. Sizes, speed and the distance of samples from a reference's need none.
        reference: the dense model to compare with.
        evaluation: how to measure.
        precisions: measure the model in these precisions too: bfloat16, float16, int8 or float8 (weights of linear
            layers; need secateur[int8]). The table then has their size, speed and distance from the model as it is.
        dry_run: print the predicted time and memory, and stop.
    """
    subject, dense = on.subject(), on.other(reference)
    options: dict[str, Any] = {"data": data, "reference": dense, "evaluation": evaluation, "precisions": precisions}
    if dry_run:
        say(str(secateur.plan_evaluate(subject, **options)))
        return
    result = secateur.evaluate(subject, **options, out=out)
    say("\n".join([str(result), *map(noted, result.all_notes())]))
    say(f"report  {out / 'report.html'}")
