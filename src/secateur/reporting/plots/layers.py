"""Where the cost of a model is, and where pruning took it from."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ...base.units import format_count
from ..layers import Pair, parts
from ..style import labelled, name_margin, panels, styled
from .ranking import kept_bars, rows_height

QUANTITIES = {"macs": "MACs", "parameters": "Parameters"}
UNITS = {"macs": "MACs of one call on one sample", "parameters": "parameters"}


@styled
def plot_layers(pairs: Sequence[Pair], quantities: Sequence[str] = tuple(QUANTITIES)) -> Figure:
    """Each quantity of every layer before and after; of a large model, by parts."""
    shown = parts(pairs)
    names = [before.name for before, _ in shown]
    figure, axes = panels([rows_height(len(shown))] * len(quantities), [name_margin(names)] * len(quantities))
    for panel, quantity in zip(axes, quantities, strict=True):
        before, after = ([getattr(pair[side], quantity) for pair in shown] for side in (0, 1))
        kept_bars(panel, names, before, after)
        panel.locator_params(axis="x", nbins=3)
        panel.xaxis.set_major_formatter(FuncFormatter(_tick))
        labelled(panel, QUANTITIES[quantity], UNITS[quantity], "part")
    return figure


def _tick(value: float, position: int | None = None) -> str:
    """A count without trailing zeros: 2.5M, 150K."""
    text = format_count(value)
    number, suffix = (text[:-1], text[-1]) if text[-1].isalpha() else (text, "")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number}{suffix}"
