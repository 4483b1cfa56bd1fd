"""Objectives at equal steps and at equal wall-clock time: denoising, + distillation, + first-order, + 2ndMatch.

    python benchmarks/recovery.py --model digits-unet
    python benchmarks/recovery.py --table

Models are cut by Diff-Pruning. Equal time: every objective trains for the time that `--steps` steps of balanced
2ndMatch, with its term at every fifth step, take. Step times are measured side by side first. A stopped run continues
after the last result.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from matplotlib.figure import Figure
from torch import nn

import secateur
from bench import (
    RECOVERY,
    Bench,
    collect,
    command_line,
    evaluation_of,
    panels_of,
    report,
    results_of,
    spread,
    targets_of,
    timed,
)
from drawing import SPARE_COLOURS, WARM, colour_key, dense_line, dots, name_rows, styled
from secateur import RecoveryConfig

BALANCED = secateur.recipe_named("2ndmatch-balanced").recovery
SECOND_MATCH: dict[str, Any] = {name: getattr(BALANCED, name) for name in ("objective", "weights", "jacobian")}
METHODS: dict[str, RecoveryConfig] = {
    "denoising": RECOVERY,
    "+ distillation": replace(RECOVERY, objective="distillation"),
    "+ first-order": replace(RECOVERY, objective="first-order"),
    "+ 2ndMatch, as published": replace(RECOVERY, objective="2ndmatch"),
    "+ 2ndMatch, balanced, 1 in 5": replace(RECOVERY, **SECOND_MATCH),
}
REFERENCE = "+ 2ndMatch, balanced, 1 in 5"
BUDGETS = ("steps", "time")
ROUNDS, TIMED = 3, 10  # steps: one of two runs has so many more, so that their fixed cost cancels


def step_seconds(bench: Bench, pruned: nn.Module, methods: dict[str, RecoveryConfig]) -> dict[str, float]:
    """Seconds of a training step of each method: the minimum over rounds, in which methods take turns."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, config in methods.items():
            short, long = (
                timed(partial(bench.recovered, pruned, replace(config, steps=steps)))[1] for steps in (TIMED, 3 * TIMED)
            )
            times[name].append((long - short) / (2 * TIMED))
    return {name: max(1e-4, min(found)) for name, found in times.items()}


def train(bench: Bench, pruned: nn.Module, config: RecoveryConfig) -> dict[str, float]:
    """Recover a cut model; returns the quality of the result."""
    model, seconds = timed(lambda: bench.recovered(pruned, config))
    return {"steps": config.steps, "seconds": round(seconds, 1), **bench.measure(model)}


def run(bench: Bench, targets: list[str], seeds: list[int], steps: int, methods: list[str], budgets: list[str]) -> None:
    results = results_of("recovery", bench, with_ftle=True)
    for target in targets:
        pruned = bench.pruned(bench.rank("diff-pruning"), target)
        results.once(f"{target}/pruned", partial(bench.measure, pruned))
        seconds: dict[str, float] = {}
        if "time" in budgets:
            measure = partial(step_seconds, bench, pruned, METHODS)
            seconds = results.once(f"{target}/step seconds", measure)
        for seed in seeds:
            for budget, method in product(budgets, methods):
                if budget == "time" and method == REFERENCE:
                    continue  # the same run
                share = seconds[REFERENCE] / seconds[method] if budget == "time" else 1.0
                chosen = replace(METHODS[method], steps=round(steps * share), seed=seed)
                key = f"{target}/{budget}/{method}/{seed}"
                results.once(key, partial(train, bench, pruned, chosen))


# ------------------------------------------------------------------------------------------- tables and plot


def found_by(records: dict[str, Any], target: str, budget: str, method: str, key: str) -> list[float]:
    budget = "steps" if method == REFERENCE else budget
    return collect(records, f"{target}/{budget}/{method}/", key)


def table(records: dict[str, Any]) -> str:
    """Markdown: one row per target, budget and method."""
    dense = records["dense"]
    lines = [
        "| MACs | budget | objective | steps | FD | gap closed | SSIM | denoising loss | FTLE |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
        f"| 100% | | dense | | {dense['fd']:.2f} | | 1 | {dense['loss']:.4f} | {dense['ftle']:.3f} |",
    ]
    for target in targets_of(records):
        pruned = records[f"{target}/pruned"]
        share = target.partition("=")[2]
        lines.append(
            f"| {share} | | pruned | 0 | {pruned['fd']:.2f} | | {pruned['ssim']:.3f} | {pruned['loss']:.4f} "
            f"| {pruned['ftle']:.3f} |"
        )
        for budget in BUDGETS:
            plain = found_by(records, target, budget, "denoising", "fd")
            for method in METHODS:
                found = {
                    key: found_by(records, target, budget, method, key)
                    for key in ("steps", "fd", "ssim", "loss", "ftle")
                }
                if not found["fd"] or not plain:
                    continue
                cells = (
                    f"{found['steps'][0]}",
                    spread(found["fd"], 2),
                    "" if method == "denoising" else gap_closed(dense["fd"], plain, found["fd"]),
                    spread(found["ssim"], 3),
                    spread(found["loss"], 4),
                    spread(found["ftle"], 3),
                )
                lines.append(f"| {share} | equal {budget} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def gap_closed(dense: float, plain: list[float], found: list[float]) -> str:
    """Share of the FD gap between plain denoising and dense that is closed, over common seeds; "no gap" below 5 %."""
    seeds = min(len(plain), len(found))
    begin, end = statistics.mean(plain[:seeds]), statistics.mean(found[:seeds])
    return f"{100 * (begin - end) / (begin - dense):.0f} %" if begin > 1.05 * dense else "no gap"


@styled
def plot(found: dict[str, dict[str, Any]]) -> Figure:
    """FD of every seed, one panel per model and target, both budgets."""
    panels = panels_of(found)
    columns = 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(8.2, 1.9 * rows + 0.3), facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey="row")
    colours = dict(zip(BUDGETS, (WARM, SPARE_COLOURS[0]), strict=True))
    for axes, (name, target) in zip(grid.flat, panels, strict=False):
        records = found[name]
        for budget, shift in (("steps", -0.13), ("time", 0.13)):
            for place, method in enumerate(METHODS):
                values = found_by(records, target, budget, method, "fd")
                if values:
                    dots(axes, values, place + shift, colours[budget])
        dense_line(axes, records["dense"]["fd"])
        axes.set_title(f"{name}, {target.partition('=')[2]} of the MACs")
        name_rows(axes, list(METHODS))
        axes.set_xlabel("FD to the data (dashed: dense)")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    colour_key(figure, {f"equal {budget}": colour for budget, colour in colours.items()})
    return figure


def main() -> None:
    parser = command_line(__doc__, steps=250)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    arguments = parser.parse_args()
    if arguments.table:
        report("recovery", table, plot)
    else:
        bench = Bench(arguments.model, evaluation_of(arguments))
        run(bench, arguments.targets, arguments.seeds, arguments.steps, arguments.methods, arguments.budgets)


if __name__ == "__main__":
    main()
