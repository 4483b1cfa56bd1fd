"""Do the two orders of the Taylor score keep the same units? Sum over timesteps, then absolute value, or the reverse.

    python benchmarks/orders.py
    python benchmarks/orders.py --table

`abs-then-sum` keeps no gradient of the whole model, so it is what large models are scored by. Both orders score the
same images with the same noise, and cut to half of the MACs. Beside the share of units that both keep (Jaccard index)
stands that of another draw of images and noise by the usual order, and the denoising loss of the cut models.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import secateur
from bench import NAMES, RESULTS, Bench, Results, read_json, write_text
from scoring import JUDGED, jaccard, kept_by
from secateur import ScoringConfig, TaylorOptions

ORDERS = ("sum-then-abs", "abs-then-sum")
PATH = RESULTS / "orders.json"


def kept_units(bench: Bench, order: Any, seed: int) -> tuple[list[str], float]:
    """The units that are kept at half of the MACs, and the cut model's loss."""
    scoring = ScoringConfig(num_timesteps=32, num_images=64, options=TaylorOptions(timestep_reduction=order))
    pruned = bench.pruned(bench.rank("taylor", seed, scoring), "macs=50%")
    judged = secateur.EvaluationConfig(metrics=("loss",), seed=JUDGED)
    result = secateur.evaluate(pruned, data=bench.data, process=bench.process, evaluation=judged)
    units = [f"{dim}:{unit}" for dim, kept in kept_by(pruned).items() for unit in kept]
    return units, result["denoising_loss"].value


def compare(name: str) -> dict[str, float]:
    """What both orders keep, what two draws keep, and the loss after the cut by each order."""
    bench = Bench(name)
    (usual, loss), (other, other_loss) = (kept_units(bench, order, 0) for order in ORDERS)
    drawn, _ = kept_units(bench, ORDERS[0], 1)
    return {"orders": jaccard(usual, other), "draws": jaccard(usual, drawn), ORDERS[0]: loss, ORDERS[1]: other_loss}


def table() -> str:
    """Markdown: one row per model."""
    lines = [
        "| model | units that both orders keep | that two draws keep | loss, sum-then-abs | loss, abs-then-sum |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, found in read_json(PATH).items():
        losses = " | ".join(f"{found[order]:.4f}" for order in ORDERS)
        lines.append(f"| {name} | {found['orders']:.2f} | {found['draws']:.2f} | {losses} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--table", action="store_true", help="only make the table of what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        results = Results(PATH)
        for name in arguments.models:
            results.once(name, partial(compare, name))
    write_text(RESULTS / "orders.md", table())
    print(table())


if __name__ == "__main__":
    main()
