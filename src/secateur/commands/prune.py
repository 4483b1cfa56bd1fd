"""`secateur prune`: cut a model to a target in one shot, without recovery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import secateur

from ..base.console import say
from ..base.errors import require
from ..compensation import CompensationConfig
from ..criteria import ScoringConfig
from ..reporting import read_run, summarize
from ..schedules import CutConfig
from .options import Compensates, CriterionName, Model


def prune(
    on: Model,
    *,
    target: str,
    out: Path,
    data: str | None = None,
    criterion: CriterionName = "diff-pruning",
    scoring: ScoringConfig,
    cut: CutConfig,
    compensates: Compensates = False,
    compensation: CompensationConfig,
    dry_run: bool = False,
) -> None:
    """Prune a model to a target; the result is the folder OUT/pruned (OUT/pipeline for a pipeline).

    Args:
        on: the model.
        target: the size to reach: macs=56%, macs=3.4G, params=20M, blocks=6 (six stay) or latency=20ms (one call at
            batch size 1 on this device); or a quality to keep, for which the smallest model is searched: ssim=0.95 (to
            the dense model's samples) or loss=5% (the most that the loss may rise).
        out: folder to write to.
        data: calibration images: an image folder, parquet, WebDataset shards, datasets:NAME, an .npz with images,
            digits, fashion, or generated (samples of the model); not needed by criteria that use weights alone.
        criterion: which criterion ranks the units (`secateur.criteria.CRITERIA`); some rank blocks only.
        scoring: options of the criterion.
        cut: which cuts are allowed.
        compensates: refit what stays to the dense model after the cut; the result is then OUT/compensated.
        compensation: options of the refit.
        dry_run: print the plan, the predicted size, time and memory, and stop.
    """
    given = compensates or compensation == CompensationConfig()
    require(given, "options of the refit are given, and there is none; add --compensation")
    subject = on.subject()
    options: dict[str, Any] = {"target": target, "data": data, "criterion": criterion, "scoring": scoring, "cut": cut}
    options |= {"compensation": compensation if compensates else None}
    if dry_run:
        say(str(secateur.plan_prune(subject, **options)))
        return
    secateur.prune(subject, **options, out=out)
    say("\n".join(summarize(read_run(out)).sentences))
    result = "pipeline" if subject.in_pipeline else "compensated" if compensates else "pruned"
    say(f"\n{'pipeline' if subject.in_pipeline else 'model':8} {out / result}\nreport   {out / 'report.html'}")
