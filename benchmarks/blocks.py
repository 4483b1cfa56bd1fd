"""Block pruning: adaptive against one shot, rankings against each other, at equal size and equal optimizer steps.

    python benchmarks/blocks.py --model digits-sit
    python benchmarks/blocks.py --model digits-sit --targets blocks=6 --methods "adaptive, deviation, ranked anew"
    python benchmarks/blocks.py --table

Half or 30 % of the blocks are removed. The budget of steps includes the stages of adaptive runs, and the seconds
include rankings and proxies. The seed determines calibration images and noise, random scores, and the training;
one-shot rankings that remove the same blocks with the same seed share a run. A stopped run continues after the last
result.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from matplotlib.figure import Figure
from torch import nn

import secateur
from bench import (
    RECOVERY,
    RESULTS,
    Bench,
    command_line,
    compare,
    draw_methods,
    method_rows,
    methods_in,
    panels_of,
    read_json,
    report,
    seconds_of,
    timed,
    write_text,
)
from drawing import SPARE_COLOURS, WARM, colour_key, dense_line, styled
from secateur import AdaptiveConfig, CedOptions, Cut, CutConfig, ScoringConfig

SCORING = ScoringConfig(num_images=64)
DEPTH = CutConfig(granularity="depth")
TARGETS = ["blocks=6", "blocks=8"]
STAGES = AdaptiveConfig()
HALF = replace(STAGES, until=0.5)
ONE_BY_ONE = AdaptiveConfig(stages=1, rerank="removal")


@dataclass(frozen=True)
class Method:
    """A criterion, when blocks are removed (None: before the first step), and whether 2ndMatch recovers."""

    criterion: str
    stages: AdaptiveConfig | None = None
    scoring: ScoringConfig = SCORING
    second_match: bool = False


PREDICTIONS = replace(SCORING, options=CedOptions(output="prediction"))
RANKINGS: dict[str, Method] = {
    "one shot, random": Method("random"),
    "one shot, magnitude": Method("magnitude"),
    "one shot, uniform": Method("uniform"),
    "one shot, cosine": Method("cosine"),
    "one shot, loss change": Method("loss-change"),
    "one shot, ced": Method("ced"),
    "one shot, ced of predictions": Method("ced", scoring=PREDICTIONS),
    "one shot, deviation": Method("deviation"),
    "one shot, replacement": Method("replacement", scoring=ScoringConfig(num_images=16)),
    "adaptive, ced": Method("ced", STAGES),
    "adaptive, deviation": Method("deviation", STAGES),
    "adaptive, cosine": Method("cosine", STAGES),
    "adaptive, loss change": Method("loss-change", STAGES),
}
SETTINGS: dict[str, Method] = {
    "adaptive, deviation, no reward for MACs": Method("deviation", replace(STAGES, macs_weight=0.0)),
    "adaptive, deviation, as the guard allows": Method("deviation", replace(STAGES, selector="loss")),
    "adaptive, deviation, fixed counts": Method("deviation", replace(STAGES, selector="fixed")),
    "adaptive, deviation, ranked anew": Method("deviation", replace(STAGES, rerank="stage")),
    "adaptive, deviation, first half": Method("deviation", HALF),
    "adaptive, deviation, first half, ranked anew": Method("deviation", replace(HALF, rerank="stage")),
    "one by one, deviation": Method("deviation", ONE_BY_ONE),
    "one by one, cosine": Method("cosine", ONE_BY_ONE),
    "one by one, loss change": Method("loss-change", ONE_BY_ONE),
}
WITH_2NDMATCH = {f"{name}, 2ndMatch": replace(method, second_match=True) for name, method in RANKINGS.items()}
COMPARED = RANKINGS | WITH_2NDMATCH
METHODS = COMPARED | SETTINGS


@cache
def one_shot_run(bench: Bench, blocks: tuple[str, ...], seed: int, steps: int, second_match: bool) -> dict[str, Any]:
    """Recover the model without `blocks`; rankings that remove the same blocks share the run."""
    pruned = secateur.apply_cut(copy.deepcopy(bench.dense), Cut({}, blocks))
    model, seconds = timed(lambda: bench.recovered(pruned, recovery_of(seed, steps, second_match)))
    return {"steps": steps, "seconds": seconds, **worth(bench, model)}


def recovery_of(seed: int, steps: int, second_match: bool) -> secateur.RecoveryConfig:
    """The recovery of every method, by 2ndMatch or by plain denoising."""
    config = replace(RECOVERY, steps=steps, seed=seed)
    chosen = secateur.recipe_named("2ndmatch-balanced").recovery
    parts: dict[str, Any] = {"objective": chosen.objective, "weights": chosen.weights, "jacobian": chosen.jacobian}
    return replace(config, **parts) if second_match else config


def worth(bench: Bench, model: nn.Module) -> dict[str, Any]:
    """The number of blocks that are left, and the quality of the model's samples."""
    return {"blocks": len(secateur.describe(model).blocks), **bench.measure(model, with_ftle=False)}


def train(bench: Bench, label: str, target: str, seed: int, steps: int) -> dict[str, Any]:
    """Rank, remove blocks and recover within `steps` optimizer steps; returns the quality of the result."""
    method = METHODS[label]
    if method.stages is None:
        ranking = bench.rank(method.criterion, seed, method.scoring)
        lowest = sorted(ranking.blocks, key=lambda name: ranking.blocks[name])
        leave = lowest[: len(lowest) - int(target.partition("=")[2])]
        found = one_shot_run(bench, tuple(sorted(leave)), seed, steps, method.second_match)
        return {**found, "seconds": round((ranking.seconds or 0.0) + found["seconds"], 1)}
    recipe = secateur.Recipe(
        criterion=method.criterion,
        scoring=replace(method.scoring, seed=seed),
        schedule="adaptive",
        adaptive=method.stages,
        cut=DEPTH,
        recovery=recovery_of(seed, steps, method.second_match),
    )
    run = bench.compressed(target, recipe)
    return {"steps": steps, "seconds": round(seconds_of(run), 1), **worth(bench, run.model)}


# ------------------------------------------------------------------------------------------- tables and plot


COLUMNS = {
    "fd": ("FD", 2),
    "ssim": ("SSIM", 3),
    "loss": ("denoising loss", 4),
    "coverage": ("coverage", 3),
    "lowest_class_coverage": ("lowest class coverage", 3),
}


def table(records: dict[str, Any], methods: Iterable[str] = tuple(COMPARED)) -> str:
    """Markdown: one row per target and method."""
    dense = {"ssim": 1.0, **records["dense"]}
    shown = {key: column for key, column in COLUMNS.items() if key in dense}  # there is none without classes
    whole = [f"{dense[key]:.{digits}f}" for key, (_, digits) in shown.items()]
    lines = [
        f"| blocks | method | {' | '.join(title for title, _ in shown.values())} | seconds |",
        f"|---|---|{'--:|' * (len(shown) + 1)}",
        f"| all | dense | {' | '.join(whole)} | |",
    ]
    digits = {key: digits for key, (_, digits) in shown.items()}
    return "\n".join([*lines, *method_rows(records, methods, digits)]) + "\n"


def colour_of(method: str) -> str:
    return WARM if method.startswith("one shot") else SPARE_COLOURS[1]


@styled
def plot(found: dict[str, dict[str, Any]]) -> Figure:
    """FD and coverage of every seed, a row of panels per model and target, of `TARGETS` if there are any."""
    rows = [(name, target) for name, target in panels_of(found) if target in TARGETS] or panels_of(found)
    shown = [methods_in(found[name], target, COMPARED) for name, target in rows]
    heights = [len(methods) for methods in shown]
    figure = Figure(figsize=(8.2, 0.22 * sum(heights) + 0.8 * len(rows)), facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False, sharey="row", height_ratios=heights)
    labels = {"fd": "FD to the data (dashed: dense)", "coverage": "coverage of the data"}
    for panels, (name, target), methods in zip(grid, rows, shown, strict=True):
        draw_methods(panels, found[name], target, methods, labels, colour_of)
        for axes, key in zip(panels, labels, strict=True):
            dense_line(axes, found[name]["dense"][key])
        panels[0].set_title(f"{name}, {target.partition('=')[2]} blocks")
    kinds = {"one shot": WARM, "in stages": SPARE_COLOURS[1]}
    drawn = {colour_of(method) for methods in shown for method in methods}
    colour_key(figure, {kind: colour for kind, colour in kinds.items() if colour in drawn})
    return figure


def main() -> None:
    parser = command_line(__doc__, steps=200)
    parser.set_defaults(targets=TARGETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(RANKINGS))
    arguments = parser.parse_args()
    if arguments.table:
        report("blocks", table, plot, apart=True)
        for path in sorted(RESULTS.glob("blocks-*.json")):
            records = read_json(path)
            halved = {key: found for key, found in records.items() if key == "dense" or key.startswith("blocks=6/")}
            if methods_in(records, "blocks=6", SETTINGS):
                text = table(halved, ["one shot, deviation", "adaptive, deviation", *SETTINGS])
                write_text(path.with_name(f"{path.stem}-settings.md"), text)
    else:
        compare("blocks", arguments, train)


if __name__ == "__main__":
    main()
