"""The course of a recovery: the lines of `log.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..base.errors import require
from ..base.units import number_of
from .codec import from_json, read_lines
from .display import Displayed
from .numbers import format_number, format_seconds
from .table import Table

Record = Mapping[str, float]  # `step`, and means since the last record: loss and its terms, seconds so far, lr ...


@dataclass(frozen=True)
class Recovery(Displayed):
    """The records of a recovery, in order."""

    records: tuple[Record, ...] = ()

    @property
    def steps(self) -> int:
        """Steps taken; 0 before the first record."""
        return int(self.records[-1]["step"]) if self.records else 0

    @property
    def seconds(self) -> float | None:
        """Seconds of the steps."""
        return self.records[-1].get("seconds") if self.records else None

    def sentences(self) -> tuple[str, ...]:
        """How many steps were taken, in what time and memory."""
        if not self.records:
            return ()
        took = "" if self.seconds is None else f" in {format_seconds(self.seconds)}"
        peak = self.records[-1].get("peak_gib")
        memory = "" if peak is None else f", with at most {peak:.1f} GiB of memory"
        return (f"Recovered for {number_of(self.steps, 'step')}{took}{memory}.", *self._of_the_book())

    def _of_the_book(self) -> tuple[str, ...]:
        """The errors on trained and held-out tuples of the teacher's book, if measured."""
        found = [record for record in self.records if "error_held_out" in record]
        if not found:
            return ()
        read, held_out = (format_number(found[-1][name]) for name in ("error_read", "error_held_out"))
        return (f"Its error against the teacher is {read} on tuples of the book, and {held_out} on held-out ones.",)

    def tables(self) -> dict[str, Table]:
        """Every record."""
        columns = tuple(dict.fromkeys(key for record in self.records for key in record))
        rows = tuple(tuple(record.get(key) for key in columns) for record in self.records)
        return {"recovery": Table(columns, rows)} if rows else {}


def read_recovery(path: str | Path) -> Recovery:
    """The records in `log.jsonl`.

    Raises:
        SecateurError: a line is damaged; the message names file, line and field.
    """
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        source = f"{path}, line {number},"
        record = from_json(dict[str, float], line, source)
        require("step" in record, f"{source} is damaged: it has no step")
        records.append(record)
    return Recovery(tuple(records))
