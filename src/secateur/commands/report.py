"""`secateur report`: write the report of a run again, or compare several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import secateur

from ..base.console import say


def report(
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")], *, out: Path | None = None
) -> None:
    """Write the report of a run from the contents of its folder, or one page that compares several runs.

    The page is self-contained: it needs no network and no other file. Beside it are report.json, plots/ and tables/.

    Args:
        runs: one folder of a rank, prune, finetune, evaluate, compress or quickstart run, or of a sweep or a search;
            or several to compare.
        out: folder to write to; by default the run's own. Required for several runs.
    """
    say(f"report  {secateur.report(runs, out=out)}")
