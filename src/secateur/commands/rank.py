"""`secateur rank`: score units and blocks by how much they matter."""

from __future__ import annotations

from pathlib import Path

import secateur

from ..base.console import say
from ..criteria import ScoringConfig
from .options import CriterionName, Model


def rank(
    on: Model,
    *,
    out: Path,
    data: str | None = None,
    criterion: CriterionName = "diff-pruning",
    scoring: ScoringConfig,
    dry_run: bool = False,
) -> None:
    """Rank every unit and block of a model; writes a JSON, a table and a plot.

    Args:
        on: the model.
        out: folder to write to.
        data: calibration images: an image folder, parquet, WebDataset shards, datasets:NAME, an .npz with images,
            digits, fashion, or generated (samples of the model); not needed by criteria that use weights alone.
        criterion: which criterion ranks the units (`secateur.criteria.CRITERIA`); some rank blocks only.
        scoring: options of the criterion.
        dry_run: print the predicted time and memory, and stop.
    """
    subject = on.subject()
    if dry_run:
        say(str(secateur.plan_rank(subject, data=data, criterion=criterion, scoring=scoring)))
        return
    ranking = secateur.rank(subject, data=data, criterion=criterion, scoring=scoring, out=out)
    say("\n\n".join(table.to_markdown() for table in ranking.tables().values()))
    say(f"scores   {out / 'ranking.json'}\nplot     {out / 'plots' / 'ranking.png'}")
    say(f"seconds  {ranking.seconds}")
