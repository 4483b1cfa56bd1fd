"""Tables of values, written in full for programs and rounded for readers."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from .numbers import Value, format_value
from .verdicts import Verdict

MOST_ROWS = 40  # in a terminal or a notebook


@dataclass(frozen=True)
class Table:
    """Column names and rows of values.

    Attributes:
        columns: their names.
        rows: values at full precision.
        notes: remarks on cells, by row and column.
        shown: text to show instead of a value, by row and column, such as the value with its uncertainty.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: Mapping[tuple[int, int], tuple[Verdict, ...]] = field(default_factory=dict)
    shown: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def text(self) -> list[list[str]]:
        """The rows as text for readers."""
        return [
            [self.shown.get((row, column)) or format_value(value) for column, value in enumerate(values)]
            for row, values in enumerate(self.rows)
        ]

    def without_empty_columns(self) -> Table:
        """The table without columns that are empty in all rows, if there are rows; for tables without notes."""
        if not self.rows:
            return self
        kept = [place for place in range(len(self.columns)) if any(row[place] is not None for row in self.rows)]
        columns = tuple(self.columns[place] for place in kept)
        return Table(columns, tuple(tuple(row[place] for place in kept) for row in self.rows))

    def to_markdown(self) -> str:
        """A Markdown table; all columns but the first are aligned to the right."""
        lines = [self.columns, [":--", *["--:"] * (len(self.columns) - 1)], *self._noted()]
        return "".join("| " + " | ".join(map(_markdown_cell, line)) + " |\n" for line in lines)

    def to_csv(self) -> str:
        """Comma-separated values at full precision; empty where nothing was measured."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()

    def to_text(self, most: int = MOST_ROWS) -> str:
        """Aligned columns for a terminal; of more than `most` rows the first ones."""
        lines = [list(self.columns), *self._noted()[:most]]
        widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
        drawn = ["  ".join(_aligned(cell, widths[i], i > 0) for i, cell in enumerate(line)).rstrip() for line in lines]
        hidden = len(self.rows) - most
        return "\n".join([*drawn, *([f"... and {hidden} more"] if hidden > 0 else [])])

    def to_html(self, most: int = MOST_ROWS) -> str:
        """A table element; of more than `most` rows the first ones."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in self.columns)
        body = [_html_row(cells) for cells in self._noted()[:most]]
        hidden = len(self.rows) - most
        if hidden > 0:
            body.append(f'<tr><td colspan="{len(self.columns)}">... and {hidden} more</td></tr>')
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"

    def _noted(self) -> list[list[str]]:
        cells = self.text()
        for (row, column), notes in self.notes.items():
            cells[row][column] += f" ({', '.join(note.text for note in notes)})"
        return cells


def _html_row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _markdown_cell(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _width(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def _aligned(text: str, width: int, right: bool) -> str:
    space = " " * (width - _width(text))
    return space + text if right else text + space
