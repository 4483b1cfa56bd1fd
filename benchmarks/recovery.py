"""Objectives at equal steps and at equal wall-clock time: denoising, + distillation, + first-order, + 2ndMatch.

    python benchmarks/recovery.py --model digits-unet
    python benchmarks/recovery.py --table

The pruned models are Diff-Pruning's. Equal time: every objective trains as long as balanced 2ndMatch with its term at
every fifth step takes for `--steps` steps, by step times that are measured side by side first. Stopped runs go on from
the last result.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from bench import (
    RECOVERY,
    RESULTS,
    Bench,
    Results,
    collect,
    command_line,
    dense_line,
    dots,
    panels_of,
    report,
    spread,
    targets_of,
)
from secateur.data.conditions import accepts
from secateur.recipes import SECOND_MATCH
from secateur.recovery import RecoveryConfig, recover
from secateur.recovery.draws import draw_step
from secateur.recovery.objectives import build_objective
from secateur.reporting.style import SPARE_COLOURS, WARM, styled

METHODS: dict[str, RecoveryConfig] = {
    "denoising": RECOVERY,
    "+ distillation": replace(RECOVERY, objective="distillation"),
    "+ first-order": replace(RECOVERY, objective="first-order"),
    "+ 2ndMatch, as published": replace(RECOVERY, objective="2ndmatch"),
    "+ 2ndMatch, balanced, 1 in 5": replace(RECOVERY, **SECOND_MATCH),
}
REFERENCE = "+ 2ndMatch, balanced, 1 in 5"
BUDGETS = ("steps", "time")
ROUNDS = 7


def step_seconds(bench: Bench, pruned: nn.Module, methods: dict[str, RecoveryConfig]) -> dict[str, float]:
    """Median seconds of a training step of each method, measured in turns."""
    student = copy.deepcopy(pruned).train()
    optimizer = torch.optim.AdamW(student.parameters(), 1e-9, fused=True)
    (draw,) = draw_step(bench.dataset, bench.loaded.process, RECOVERY, 0, accepts=accepts(bench.dense))
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(ROUNDS):
        for name, config in methods.items():
            every_n = config.jacobian.every_n
            begun = time.perf_counter()
            for number in range(every_n):
                objective = build_objective(config, bench.dense).at(number)
                with objective.layers(student, bench.dense):
                    terms = objective.terms(student, bench.dense, bench.loaded.process, draw, objective.jacobian)
                    objective.loss(terms).backward()
                optimizer.step()
                optimizer.zero_grad()
            times[name].append((time.perf_counter() - begun) / every_n)
    return {name: statistics.median(found) for name, found in times.items()}


def train(bench: Bench, pruned: nn.Module, config: RecoveryConfig) -> dict[str, float]:
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = recover(copy.deepcopy(pruned), bench.loaded.process, bench.dataset, config, folder, bench.dense)
    seconds = time.perf_counter() - begun
    return {"steps": config.steps, "seconds": round(seconds, 1), **bench.measure(model)}


def run(name: str, targets: list[str], seeds: list[int], steps: int, methods: list[str], budgets: list[str]) -> None:
    bench = Bench(name)
    results = Results(RESULTS / f"recovery-{name}.json")
    results.once("dense", lambda: bench.measure(bench.dense))
    for target in targets:
        cut = bench.cut("diff-pruning", target, 0)
        pruned = bench.pruned(cut)
        results.once(f"{target}/pruned", lambda pruned=pruned: bench.measure(pruned))
        seconds = results.once(f"{target}/step seconds", lambda pruned=pruned: step_seconds(bench, pruned, METHODS))
        for seed in seeds:
            for budget, method in product(budgets, methods):
                if budget == "time" and method == REFERENCE:
                    continue  # the same run
                equal_time = round(steps * seconds[REFERENCE] / seconds[method])
                chosen = replace(METHODS[method], steps=steps if budget == "steps" else equal_time, seed=seed)
                key = f"{target}/{budget}/{method}/{seed}"
                results.once(key, lambda pruned=pruned, chosen=chosen: train(bench, pruned, chosen))


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
    """Share of the FD between plain denoising and dense, over the seeds of both; none where that is under 5 %."""
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
    grid = figure.subplots(rows, columns, squeeze=False)
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
        axes.set_yticks(range(len(METHODS)), list(METHODS))
        axes.set_ylim(len(METHODS) - 0.4, -0.6)  # the first on top
        axes.set_xlabel("FD to the data (dashed: dense)")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    handles = [
        figure.axes[0].plot([], [], "o", ms=4, color=colour, label=f"equal {budget}")[0]
        for budget, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def main() -> None:
    parser = command_line(__doc__, steps=250)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=list(BUDGETS))
    arguments = parser.parse_args()
    if arguments.table:
        report("recovery", table, plot)
    else:
        run(arguments.model, arguments.targets, arguments.seeds, arguments.steps, arguments.methods, arguments.budgets)


if __name__ == "__main__":
    main()
