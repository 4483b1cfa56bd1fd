"""The tables and the plot of what recipes.py measured: every method by itself, and methods side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from bench import NAMES, RESULTS, collect, panels_of, read_json, report, spread, targets_of, write_text
from drawing import SPARE_COLOURS, WARM, dense_line, dots, name_rows, styled
from recipe_methods import MAIN, METHODS

BUDGETS = {"time": 1.0, "steps": 1.0, "4 x time": 4.0}
SUMMARIES = {
    "recipes": ("macs", "time", MAIN),
    "recipes-variants": ("macs", "time", tuple(name for name in METHODS if name not in MAIN)),
    "recipes-blocks": ("blocks", "time", tuple(METHODS)),
    "recipes-blocks-steps": ("blocks", "steps", tuple(METHODS)),
    "recipes-steps": ("macs", "steps", tuple(METHODS)),
    "recipes-4x": ("macs", "4 x time", tuple(METHODS)),
}
SMALLEST_GAP = 1.2  # of plain's FD over the dense model's; below, SSIM and loss tell more


def shares(records: dict[str, Any], target: str, budget: str, method: str) -> list[float]:
    """For every seed, the closed share of the FD gap between plain fine-tuning (mean over seeds) and dense."""
    plain, dense = statistics.mean(collect(records, f"{target}/{budget}/plain/", "fd")), records["dense"]["fd"]
    return [(plain - found) / (plain - dense) for found in collect(records, f"{target}/{budget}/{method}/", "fd")]


def table(records: dict[str, Any]) -> str:
    """Markdown: one row per target, budget and method."""
    dense = records["dense"]
    lines = [
        "| size | budget | method | steps | CPU s | FD | gap closed | FD to dense | SSIM | denoising loss |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|--:|",
        f"| 100% | | dense | | | {dense['fd']:.2f} | | 0 | 1 | {dense['loss']:.4f} |",
    ]
    for target in targets_of(records):
        for start in ("cut", "refitted"):
            one = records[f"{target}/{start}"]
            lines.append(
                f"| {size(target)} | | {start}, not trained | 0 | | {one['fd']:.2f} | | {_shown([one], 'rfd', 2)} "
                f"| {one['ssim']:.3f} | {one['loss']:.4f} |"
            )
    for target, budget, method in product(targets_of(records), BUDGETS, METHODS):
        found = [one for key, one in records.items() if key.startswith(f"{target}/{budget}/{method}/")]
        if not found:
            continue
        plain = collect(records, f"{target}/{budget}/plain/", "fd")
        closed = ""
        if method != "plain" and plain:
            has_gap = statistics.mean(plain) > SMALLEST_GAP * dense["fd"]
            closed = spread(shares(records, target, budget, method), 2) if has_gap else "no gap"
        lines.append(
            f"| {size(target)} | {budget} | {method} | {found[0]['steps']:.0f} "
            f"| {statistics.median(one['seconds'] for one in found):.0f} | {_shown(found, 'fd', 2)} | {closed} "
            f"| {_shown(found, 'rfd', 2)} | {_shown(found, 'ssim', 3)} | {_shown(found, 'loss', 4)} |"
        )
    return "\n".join(lines) + "\n"


def size(target: str) -> str:
    """What remains: a share of the MACs, or blocks."""
    kind, _, amount = target.partition("=")
    return f"{amount} blocks" if kind == "blocks" else amount


def _shown(records: Sequence[Mapping[str, float]], key: str, digits: int) -> str:
    """Mean and deviation; nothing if it was not measured in all of them."""
    return spread([one[key] for one in records], digits) if all(key in one for one in records) else ""


def summary(found: Mapping[str, dict[str, Any]], kind: str, budget: str, methods: Sequence[str]) -> str:
    """Markdown: one row per method, a column per model and target of the `kind` macs or blocks: share of the gap, and
    FD to dense; before them the geometric mean, over the columns of a row, of FD to dense over plain's."""
    panels = [
        (name, target)
        for name, target in panels_of(found)
        if target.startswith(kind) and any(_fds(found[name], target, budget, method) for method in methods)
    ]
    heads = [f"{name}, {size(target)}" for name, target in panels]
    lines = [f"| method | of plain's | {' | '.join(heads)} |", f"|---|--:|{'--:|' * len(panels)}"]
    for method in methods:
        cells = [_distances(found[name], target, budget, method) for name, target in panels]
        if any(cells):
            ratios = [ratio for name, target in panels for ratio in _of_plain(found[name], target, budget, method)]
            mean = f"{statistics.geometric_mean(ratios):.2f}" if ratios else ""
            lines.append(f"| {method} | {mean} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _of_plain(records: dict[str, Any], target: str, budget: str, method: str) -> list[float]:
    """FD to dense over that of plain fine-tuning; nothing if one of them is missing."""
    both = [collect(records, f"{target}/{budget}/{name}/", "rfd") for name in (method, "plain")]
    return [statistics.mean(both[0]) / statistics.mean(both[1])] if all(both) else []


def _distances(records: dict[str, Any], target: str, budget: str, method: str) -> str:
    to_dense = collect(records, f"{target}/{budget}/{method}/", "rfd")
    if not to_dense:
        return ""
    plain = _fds(records, target, budget, "plain")
    has_gap = plain and statistics.mean(plain) > SMALLEST_GAP * records["dense"]["fd"]
    share = spread(shares(records, target, budget, method), 2) if has_gap and method != "plain" else "–"
    return f"{share} / {statistics.mean(to_dense):.2f}"


@styled
def plot(found: dict[str, dict[str, Any]]) -> Figure:
    """FD of every seed, one panel per model and target."""
    panels = panels_of(found)
    shown = [[method for method in METHODS if _fds(found[name], target, "time", method)] for name, target in panels]
    columns = 2
    heights = [0.18 * max(map(len, shown[first : first + columns])) + 0.8 for first in range(0, len(panels), columns)]
    figure = Figure(figsize=(11, sum(heights)), facecolor="white", layout="constrained")
    grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    for axes, (name, target), methods in zip(grid.flat, panels, shown, strict=False):
        for place, method in enumerate(methods):
            values = _fds(found[name], target, "time", method)
            dots(axes, values, place, WARM if METHODS[method].refits else SPARE_COLOURS[0])
        dense_line(axes, found[name]["dense"]["fd"])
        axes.set_xscale("log")
        for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            ticks(FuncFormatter(lambda value, place: f"{value:g}"))
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.set_title(f"{name}, {size(target)}{' of the MACs' if target.startswith('macs') else ''}")
        name_rows(axes, methods)
        axes.set_xlabel("FD at equal time (dashed: dense)")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure


def _fds(records: dict[str, Any], target: str, budget: str, method: str) -> list[float]:
    return collect(records, f"{target}/{budget}/{method}/", "fd")


def write_tables() -> None:
    """Write the table of every model, the plot, and the summaries."""
    report("recipes", table, plot)
    found = {name: read_json(path) for name in NAMES if (path := RESULTS / f"recipes-{name}.json").is_file()}
    for name, chosen in SUMMARIES.items():
        write_text(RESULTS / f"{name}.md", summary(found, *chosen))
