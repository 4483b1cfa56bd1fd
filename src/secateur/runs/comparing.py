"""Several runs side by side: those of a sweep or a search in memory, and the page that compares runs in folders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..base.errors import SecateurError, require
from ..base.files import read_json
from ..reporting import TRIALS, write_comparison, write_report
from ..results import Trials, read_result
from .compression import read_compressed
from .folder import CONFIG, refuse_run
from .run import Run
from .search import WINNER
from .subject import Subject


@dataclass(frozen=True)
class Comparison:
    """What `sweep` and `best` return without a folder; it prints as a table of what was measured.

    Attributes:
        trials: every trial and its outcome, and the plan and result of a search.
        runs: the finished compressions, by the name of the trial; of a search, the winner alone.
        table: what was measured, in Markdown.
    """

    trials: Trials
    runs: Mapping[str, Run] = field(repr=False)
    table: str = field(repr=False)

    @property
    def winner(self) -> Run | None:
        """The whole compression by the recipe that won the search; None for a sweep."""
        return self.runs.get(WINNER)

    def __str__(self) -> str:
        return "\n".join([*self.trials.sentences(), self.table])

    __repr__ = __str__


def read_comparison(folder: Path, subject: Subject) -> Comparison:
    """Read a finished sweep or search of the subject's model into memory."""
    found = read_result(Trials, folder / TRIALS)
    places = {
        trial.name: folder / (trial.folder or f"trials/{trial.name}")
        for trial in found.trials
        if trial.status == "done" and trial.rung is None
    }
    runs = {
        name: Run(subject, read_compressed(place, subject), read_json(place / CONFIG)) for name, place in places.items()
    }
    return Comparison(found, runs, (folder / "tables" / "comparison.md").read_text(encoding="utf-8"))


@contextmanager
def folder_or_temporary(out: str | Path | None) -> Iterator[Path]:
    """`out`, or a temporary folder that is removed after the block."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        yield Path(folder) / "run"


def report(runs: str | Path | Run | Sequence[str | Path | Run], *, out: str | Path | None = None) -> Path:
    """Write the report of a run from the contents of its folder, or one page that compares several runs.

    The page is self-contained: it needs no network and no other file. Beside it are report.json, plots/ and tables/.

    Args:
        runs: a folder of a rank, prune, finetune, evaluate, compress or quickstart run, or of a sweep or a search; what
            `compress` returned; or several of these to compare.
        out: folder to write to; by default the run's own. Required for several runs, and for a run in memory, which is
            saved there.

    Returns:
        The path of the page.

    Raises:
        SecateurError: a folder is not a run, or `out` is one of them.
    """
    given = [runs] if isinstance(runs, str | Path | Run) else list(runs)
    if any(isinstance(run, Run) and run.folder is None for run in given):
        if out is None:
            raise SecateurError("a run in memory has no folder for its page; give out=")
        refuse_run(out)
    if len(given) == 1 and isinstance(given[0], Run) and given[0].folder is None:
        return given[0].report(out)
    folders = [_folder_of(run, out, number) for number, run in enumerate(given, start=1)]
    require(len(folders) > 0, "no run was given; give one or more folders of runs")
    for folder in folders:
        if not (folder / "config.json").is_file():
            raise SecateurError(f"{folder} is not a run of secateur: it has no config.json")
    if out is not None:
        for folder in folders:
            require(Path(out).resolve() != folder.resolve(), f"{out} is one of the runs; choose another --out")
        refuse_run(out)
    if len(folders) == 1 and not (folders[0] / TRIALS).is_file():
        return write_report(folders[0], out)
    if len(folders) == 1 and out is None:
        return write_comparison(folders[0])
    if out is None:
        raise SecateurError("a page that compares several runs needs a folder of its own; give --out")
    return write_comparison(Path(out), folders)


def _folder_of(run: str | Path | Run, out: str | Path | None, number: int) -> Path:
    """The folder of a run; one in memory is saved as run `number` below `out`."""
    if not isinstance(run, Run):
        return Path(run)
    return run.folder or run.save(Path(str(out)) / f"run-{number}")
