"""The report of one run, or the page that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..base.errors import SecateurError, require
from ..reporting import TRIALS, write_comparison, write_report
from .folder import refuse_run


def report(runs: str | Path | Sequence[str | Path], *, out: str | Path | None = None) -> Path:
    """Write the report of a run from the contents of its folder, or one page that compares several runs.

    The page is self-contained: it needs no network and no other file. Beside it are report.json, plots/ and tables/.

    Args:
        runs: a folder of a rank, prune, finetune, evaluate, compress or quickstart run, or of a sweep or a search; or
            several to compare.
        out: folder to write to; by default the run's own. Required for several runs.

    Returns:
        The path of the page.

    Raises:
        SecateurError: a folder is not a run, or `out` is one of them.
    """
    folders = [Path(runs)] if isinstance(runs, str | Path) else [Path(run) for run in runs]
    require(len(folders) > 0, "no run was given; give one or more folders of runs")
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise SecateurError(f"{folder} is not a run of secateur: it has no config.json")
    if len(folders) == 1 and out is None:
        [run] = folders
        return write_comparison(run) if (run / TRIALS).is_file() else write_report(run)
    if out is None:
        raise SecateurError("a page that compares several runs needs a folder of its own; give --out")
    for folder in folders:
        require(Path(out).resolve() != folder.resolve(), f"{out} is one of the runs; choose another --out")
    refuse_run(out)
    return write_comparison(Path(out), folders)
