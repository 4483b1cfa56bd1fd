"""`secateur report`: write the report of a run again."""

from pathlib import Path
from typing import Annotated

import tyro

from ..errors import SecateurError
from ..reporting import write_report
from .common import say


def report(run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]) -> Path:
    """Write RUN/report.html from what the run folder holds.

    Args:
        run: the folder of a rank, prune, finetune, evaluate, compress or quickstart run.
    """
    if not (Path(run) / "config.json").is_file():
        raise SecateurError(f"{run} is no run of secateur: it has no config.json")
    page = write_report(Path(run))
    say(f"report  {page}")
    return page
