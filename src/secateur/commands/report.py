"""`secateur report`: write the report of a run again, or compare many."""

from pathlib import Path
from typing import Annotated

import tyro

from ..base.console import say
from ..base.errors import SecateurError, require
from ..base.rules import checked
from ..reporting import TRIALS, write_comparison, write_report
from ..runs.folder import refuse_run


@checked
def report(
    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")], *, out: Path | None = None
) -> Path:
    """Write the report of a run from what its folder holds, or one page that compares several runs.

    One page holds everything: it needs no network and no other file. Beside it are report.json, plots/ and tables/.

    Args:
        runs: one folder of a rank, prune, finetune, evaluate, compress or quickstart run, or of a sweep or a search;
            or several to compare.
        out: folder to write to; the default is the folder itself, several need one.
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    require(len(folders) > 0, "no run was given; give one or more folders of runs")
    for folder in folders:
        if not (Path(folder) / "config.json").is_file():
            raise SecateurError(f"{folder} is no run of secateur: it has no config.json")
    if len(folders) == 1 and out is None:
        [run] = folders
        page = write_comparison(run) if (Path(run) / TRIALS).is_file() else write_report(run)
    else:
        if out is None:
            raise SecateurError("several runs are compared on a page of their own; say in which folder by --out")
        for folder in folders:
            require(Path(out).resolve() != Path(folder).resolve(), f"{out} is one of the runs; choose another --out")
        refuse_run(out)
        page = write_comparison(out, folders)
    say(f"report  {page}")
    return page
