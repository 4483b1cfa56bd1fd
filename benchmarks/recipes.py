"""Recipes at equal time and at equal steps: the share of the gap between plain fine-tuning and dense that they close.

    python benchmarks/recipes.py --model digits-unet --methods plain default
    python benchmarks/recipes.py --table

A method is a recipe with the batch, learning rate and schedule that suit small models. Time is that of the CPU in one
thread, since the machine may be shared, from the ranking to the recovered model: all methods get what Diff-Pruning's
cut and `--steps` steps of distillation with a fresh teacher take. Short pilots tell a method's seconds apart from its
steps' own. Results survive a stop; what is there is not measured again.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

import secateur
from bench import (
    RECOVERY,
    SCORING,
    Bench,
    collect,
    command_line,
    evaluation_of,
    panels_of,
    report,
    results_of,
    spread,
    targets_of,
)
from drawing import SPARE_COLOURS, WARM, dense_line, dots, name_rows, styled
from secateur import Recipe, RecoveryConfig

# What is the same for all: not how a recipe trains, but how long and how fast.
SHARED = ("batch_size", "learning_rate", "lr_schedule", "warmup_steps", "checkpoint_every", "log_every")


def small(recipe: Recipe, **recovery: Any) -> Recipe:
    """`recipe` at the size of the benchmarks' models, with fields of its recovery replaced."""
    scoring = replace(SCORING, options=recipe.scoring.options)
    shared = {name: getattr(RECOVERY, name) for name in SHARED}
    return replace(recipe, scoring=scoring, recovery=replace(recipe.recovery, **shared, **recovery))


def named(name: str, **recovery: Any) -> Recipe:
    return small(secateur.recipe_named(name), **recovery)


def soft(name: str) -> Recipe:
    """A progressive recipe with shorter stages."""
    recipe = named(name)
    return replace(recipe, progressive=replace(recipe.progressive, stage_steps=STAGE_STEPS))


DISTILLED: dict[str, Any] = {"objective": "distillation", "weights": {"denoising": 0.0}}
PLAIN = Recipe(recovery=RecoveryConfig(dropout=0.1))
FRESH = Recipe(compensates=True, recovery=RecoveryConfig(**DISTILLED))
BOOK = replace(FRESH, records=True)
BALANCED = secateur.recipe_named("2ndmatch-balanced").recovery
NAMED = ("2ndmatch", "2ndmatch-balanced", "taylor", "magnitude")
SOFT = ("progressive", "gradient-flow")
STAGES, STAGE_STEPS = 14, 10  # shorter stages than the recipes have, whose own 20 steps would fill the time
METHODS: dict[str, Recipe] = {
    "plain": small(PLAIN),
    "plain, Muon": small(PLAIN, optimizer="muon"),
    "distilled": small(replace(FRESH, compensates=False)),
    "refitted, plain": small(replace(PLAIN, compensates=True)),
    "refitted, distilled": small(FRESH),
    "refitted, distilled, Muon": small(FRESH, optimizer="muon"),
    "refitted, with denoising": small(FRESH, weights={}),
    "refitted, features": small(FRESH, objective="features"),
    "refitted, 2ndMatch": small(
        FRESH, objective="2ndmatch", weights=BALANCED.weights | {"denoising": 0.0}, jacobian=BALANCED.jacobian
    ),
    "refitted, book": small(BOOK),
    "refitted, book, Muon": small(BOOK, optimizer="muon"),
    **{name: named(name) for name in NAMED},
    **{name: soft(name) for name in SOFT},
}
REFERENCE = "distilled"  # which says how much time there is
BUDGETS = {"time": 1.0, "steps": 1.0, "4 x time": 4.0}
PILOTS, ROUNDS = (5, 45), 2  # steps of runs that tell what a step takes
# A run must measure something: what is measured of its model comes after, and is not timed.
UNMEASURED = secateur.EvaluationConfig(
    metrics=("ftle",), num_inference_steps=2, ftle=secateur.FtleOptions(images=2, iterations=1)
)


def compressed(bench: Bench, target: str, recipe: Recipe, steps: int, seed: int) -> tuple[nn.Module, float]:
    """The recovered model, and the seconds of CPU that all its stages took."""
    recovery = replace(recipe.recovery, steps=steps, warmup_steps=min(recipe.recovery.warmup_steps, steps - 1))
    chosen = replace(recipe, recovery=recovery, evaluation=UNMEASURED)
    begun = time.process_time()
    run = secateur.compress(bench.loaded, target=target, data=bench.data, recipe=chosen, seed=seed)
    return run.model, time.process_time() - begun


def prices(bench: Bench, target: str, recipes: dict[str, Recipe]) -> dict[str, dict[str, float]]:
    """What each recipe takes beside its steps, and for a step, in steps of the reference: lines through two short runs,
    the least of rounds that take turns."""
    took: dict[tuple[str, int], list[float]] = defaultdict(list)
    least = {name: STAGES * STAGE_STEPS if recipe.schedule == "progressive" else 0 for name, recipe in recipes.items()}
    for _, pilot, (name, recipe) in product(range(ROUNDS), PILOTS, recipes.items()):
        took[name, pilot].append(compressed(bench, target, recipe, least[name] + pilot, seed=0)[1])
    short, long = PILOTS
    step = {name: (min(took[name, long]) - min(took[name, short])) / (long - short) for name in recipes}
    once = {name: max(0.0, min(took[name, short]) - (least[name] + short) * step[name]) for name in recipes}
    unit = step[REFERENCE]
    return {
        name: {"once": once[name] / unit, "step": step[name] / unit, "all": once[REFERENCE] / unit, "seconds": unit}
        for name in recipes
    }


def train(bench: Bench, target: str, recipe: Recipe, steps: int, seed: int) -> dict[str, float]:
    model, seconds = compressed(bench, target, recipe, steps, seed)
    return {"steps": steps, "seconds": round(seconds, 1), **bench.measure(model, with_ftle=False)}


def run(bench: Bench, targets: list[str], seeds: list[int], steps: int, methods: list[str], budgets: list[str]) -> None:
    results = results_of("recipes", bench)
    for target in targets:
        priced = [f"{target}/price/{method}" for method in methods]
        missing = [method for method, key in zip(methods, priced, strict=True) if key not in results.records]
        if missing:
            found = prices(bench, target, {name: METHODS[name] for name in dict.fromkeys((REFERENCE, *missing))})
            for method in missing:
                results.once(f"{target}/price/{method}", partial(found.__getitem__, method))
    for target, seed, budget, method in product(targets, seeds, budgets, methods):
        price = results.records[f"{target}/price/{method}"]
        given = price["all"] + BUDGETS[budget] * steps
        count = steps if budget == "steps" else max(2, round((given - price["once"]) / price["step"]))
        key = f"{target}/{budget}/{method}/{seed}"
        results.once(key, partial(train, bench, target, METHODS[method], count, seed))


# ------------------------------------------------------------------------------------------- tables and plot


def shares(records: dict[str, Any], target: str, budget: str, method: str) -> list[float]:
    """Of every seed, the share of the FD between plain fine-tuning (the mean of its seeds) and dense that is closed."""
    plain, dense = statistics.mean(collect(records, f"{target}/{budget}/plain/", "fd")), records["dense"]["fd"]
    return [(plain - found) / (plain - dense) for found in collect(records, f"{target}/{budget}/{method}/", "fd")]


def table(records: dict[str, Any]) -> str:
    """Markdown: one row per target, budget and method."""
    dense = records["dense"]
    lines = [
        "| MACs | budget | method | steps | CPU s | FD | gap closed | SSIM | denoising loss |",
        "|---|---|---|--:|--:|--:|--:|--:|--:|",
        f"| 100% | | dense | | | {dense['fd']:.2f} | | 1 | {dense['loss']:.4f} |",
    ]
    for target, budget, method in product(targets_of(records), BUDGETS, METHODS):
        prefix = f"{target}/{budget}/{method}/"
        found = {key: collect(records, prefix, key) for key in ("steps", "seconds", "fd", "ssim", "loss")}
        if not found["fd"]:
            continue
        plain = collect(records, f"{target}/{budget}/plain/", "fd")
        closed = "" if method == "plain" or not plain else spread(shares(records, target, budget, method), 2)
        lines.append(
            f"| {target.partition('=')[2]} | {budget} | {method} | {found['steps'][0]:.0f} "
            f"| {statistics.median(found['seconds']):.0f} | {spread(found['fd'], 2)} | {closed} "
            f"| {spread(found['ssim'], 3)} | {spread(found['loss'], 4)} |"
        )
    return "\n".join(lines) + "\n"


@styled
def plot(found: dict[str, dict[str, Any]]) -> Figure:
    """FD of every seed, one panel per model and target."""
    panels = panels_of(found)
    shown = [method for method in METHODS if any(_fds(found[name], target, method) for name, target in panels)]
    columns = 2
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(8.2, (0.18 * len(shown) + 0.8) * rows), facecolor="white", layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, (name, target) in zip(grid.flat, panels, strict=False):
        for place, method in enumerate(shown):
            dots(axes, _fds(found[name], target, method), place, WARM if "refitted" in method else SPARE_COLOURS[0])
        dense_line(axes, found[name]["dense"]["fd"])
        axes.set_title(f"{name}, {target.partition('=')[2]} of the MACs")
        axes.set_xscale("log")
        name_rows(axes, shown)
        axes.set_xlabel("FD to the data at equal time (dashed: dense)")
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    return figure


def _fds(records: dict[str, Any], target: str, method: str) -> list[float]:
    return collect(records, f"{target}/time/{method}/", "fd")


def main() -> None:
    parser = command_line(__doc__, steps=250)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=["time"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        report("recipes", table, plot)
    else:
        bench = Bench(arguments.model, evaluation_of(arguments))
        run(bench, arguments.targets, arguments.seeds, arguments.steps, arguments.methods, arguments.budgets)


if __name__ == "__main__":
    main()
