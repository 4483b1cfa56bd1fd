"""How results are displayed: as text in a terminal, as tables and figures in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any, ClassVar, TypeVar

from .table import Table

T = TypeVar("T")


class Displayed:
    """Base of results: a subclass defines `sentences` and `tables`, and `reporting` adds figures."""

    drawn_by: ClassVar[Callable[[Any], list[str]] | None] = None  # SVG elements of a result

    def sentences(self) -> tuple[str, ...]:
        """The result in plain language; nothing by default."""
        return ()

    def tables(self) -> dict[str, Table]:
        """Its tables by name."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n\n".join([*self.sentences(), *(table.to_text() for table in self.tables().values())])

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{escape(sentence)}</p>" for sentence in self.sentences())
        figures = "".join(f'<div style="max-width: 36em">{svg}</div>' for svg in _figures(self))
        return f"<div>{said}{''.join(table.to_html() for table in self.tables().values())}{figures}</div>"


def draws(kind: type[T]) -> Callable[[Callable[[T], list[str]]], Callable[[T], list[str]]]:
    """Register the function that draws results of type `kind` in notebooks."""

    def register(draw: Callable[[T], list[str]]) -> Callable[[T], list[str]]:
        kind.drawn_by = staticmethod(draw)  # type: ignore[attr-defined]
        return draw

    return register


def _figures(result: Displayed) -> list[str]:
    draw = type(result).drawn_by
    return [] if draw is None else draw(result)
