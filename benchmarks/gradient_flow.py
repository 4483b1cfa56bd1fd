"""Progressive soft pruning against one-shot and hard iterative pruning, at equal size and equal optimizer steps.

    python benchmarks/gradient_flow.py --model digits-unet
    python benchmarks/gradient_flow.py --table

The budget of steps includes the stages of a progressive run, and the seconds include scoring between stages. The seed
determines calibration images and noise, and the training. A stopped run continues after the last result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from matplotlib.figure import Figure

import secateur
from bench import (
    CUT,
    RECOVERY,
    Bench,
    command_line,
    compare,
    draw_methods,
    method_rows,
    methods_in,
    panels_of,
    report,
    seconds_of,
    timed,
)
from drawing import SPARE_COLOURS, WARM, colour_key, dense_line, styled
from secateur import GradientFlowOptions, ProgressiveConfig, ScoringConfig

SCORING = ScoringConfig(num_timesteps=16, num_images=16)
RECIPE = secateur.recipe_named("progressive").scoring
LITERAL_UNIFORM = GradientFlowOptions(mode="increase", timestep_weights="uniform")
LITERAL = replace(SCORING, options=GradientFlowOptions(mode="increase"))
STAGES = ProgressiveConfig(stage_steps=6)
SHORT = replace(STAGES, stage_steps=2)


@dataclass(frozen=True)
class Method:
    """A criterion, its options, and the stages of a progressive run; None is one shot."""

    criterion: str
    scoring: ScoringConfig = SCORING
    stages: ProgressiveConfig | None = None


METHODS: dict[str, Method] = {
    "one shot, magnitude": Method("magnitude"),
    "one shot, taylor": Method("taylor"),
    "one shot, diff-pruning": Method("diff-pruning"),
    "one shot, gradient flow": Method("gradient-flow", LITERAL),
    "one shot, gradient flow, preserve": Method("gradient-flow"),
    "iterative hard, taylor": Method("taylor", SCORING, replace(STAGES, decay_stages=1)),
    "progressive, gradient flow (literal)": Method("gradient-flow", LITERAL, STAGES),
    "progressive, gradient flow, coarse": Method("gradient-flow", LITERAL, replace(STAGES, coarse=True)),
    "progressive, gradient flow, preserve": Method("gradient-flow", SCORING, STAGES),
    "progressive, gradient flow, preserve, coarse": Method("gradient-flow", SCORING, replace(STAGES, coarse=True)),
    "progressive, magnitude": Method("magnitude", SCORING, STAGES),
    "progressive, taylor": Method("taylor", SCORING, STAGES),
    "progressive, gradient flow, uniform weights": Method(
        "gradient-flow",
        replace(SCORING, options=LITERAL_UNIFORM),
        STAGES,
    ),
    "progressive, preserve, uniform weights": Method(
        "gradient-flow", replace(SCORING, options=GradientFlowOptions(timestep_weights="uniform")), STAGES
    ),
    "progressive, taylor, short stages": Method("taylor", SCORING, SHORT),
    "progressive, taylor, short stages, coarse": Method("taylor", SCORING, replace(SHORT, coarse=True)),
    "progressive, taylor, short stages, the recipe's scoring": Method("taylor", RECIPE, SHORT),
    "progressive, taylor, short stages, coarse, the recipe's scoring": Method(
        "taylor", RECIPE, replace(SHORT, coarse=True)
    ),
    "progressive, taylor, not sticky": Method("taylor", SCORING, replace(STAGES, sticky=False)),
    "progressive, preserve, short stages": Method("gradient-flow", SCORING, SHORT),
}


def train(bench: Bench, label: str, target: str, seed: int, steps: int) -> dict[str, Any]:
    """Score, cut and recover within `steps` optimizer steps; returns the quality of the result."""
    method = METHODS[label]
    recovery = replace(RECOVERY, steps=steps, seed=seed)
    if method.stages is None:
        ranking = bench.rank(method.criterion, seed, method.scoring)
        pruned, cutting = timed(lambda: bench.pruned(ranking, target))
        model, training = timed(lambda: bench.recovered(pruned, recovery))
        seconds = (ranking.seconds or 0.0) + cutting + training
    else:
        run = bench.compressed(
            target,
            secateur.Recipe(
                criterion=method.criterion,
                scoring=replace(method.scoring, seed=seed),
                schedule="progressive",
                progressive=method.stages,
                cut=CUT,
                recovery=recovery,
            ),
        )
        model, seconds = run.model, seconds_of(run)
    return {"steps": steps, "seconds": round(seconds, 1), **bench.measure(model, with_ftle=False)}


# ------------------------------------------------------------------------------------------- tables and plot


def table(records: dict[str, Any]) -> str:
    """Markdown: one row per target and method."""
    dense = records["dense"]
    lines = [
        "| MACs | method | FD | SSIM | denoising loss | seconds |",
        "|---|---|--:|--:|--:|--:|",
        f"| 100% | dense | {dense['fd']:.2f} | 1 | {dense['loss']:.4f} | |",
    ]
    return "\n".join([*lines, *method_rows(records, METHODS, {"fd": 2, "ssim": 3, "loss": 4})]) + "\n"


KINDS = {"one shot": WARM, "progressive": SPARE_COLOURS[0], "iterative hard": SPARE_COLOURS[-1]}


def colour_of(method: str) -> str:
    return next(colour for kind, colour in KINDS.items() if method.startswith(kind))


@styled
def plot(found: dict[str, dict[str, Any]]) -> Figure:
    """FD and SSIM of every seed, a row of panels per model and target."""
    rows = panels_of(found)
    shown = [methods_in(found[name], target, METHODS) for name, target in rows]
    heights = [len(methods) + 2 for methods in shown]
    figure = Figure(figsize=(8.2, 0.22 * sum(heights) + 0.5 * len(rows)), facecolor="white", layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False, sharey="row", height_ratios=heights)
    labels = {"fd": "FD to the data (dashed: dense)", "ssim": "SSIM to the dense model's images"}
    for panels, (name, target), methods in zip(grid, rows, shown, strict=True):
        records = found[name]
        draw_methods(panels, records, target, methods, labels, colour_of)
        dense_line(panels[0], records["dense"]["fd"])
        panels[0].set_title(f"{name}, {target.partition('=')[2]} of the MACs")
    colour_key(figure, KINDS)
    return figure


def main() -> None:
    parser = command_line(__doc__, steps=200)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    if arguments.table:
        report("gradient-flow", table, plot, apart=True)
    else:
        compare("gradient-flow", arguments, train)


if __name__ == "__main__":
    main()
