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


def kept_units(bench: Bench, order: Any, seed: int) -> dict[str, Any]:
    """The units that are kept at half of the MACs, and the cut model's loss."""
    scoring = ScoringConfig(num_timesteps=32, num_images=64, options=TaylorOptions(timestep_reduction=order))
    pruned = bench.pruned(bench.rank("taylor", seed, scoring), "macs=50%")
    judged = secateur.EvaluationConfig(metrics=("loss",), seed=JUDGED)
    result = secateur.evaluate(pruned, data=bench.data, process=bench.process, evaluation=judged)
    units = [f"{dim}:{unit}" for dim, kept in kept_by(pruned).items() for unit in kept]
    return {"kept": sorted(units), "loss": result["denoising_loss"].value}


def table() -> str:
    """Markdown: one row per model."""
    records = read_json(PATH)
    lines = [
        "| model | units that both orders keep | that two draws keep | loss, sum-then-abs | loss, abs-then-sum |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(key.split("/")[0] for key in records):
        usual, other, drawn = (
            records[f"{name}/{case}"] for case in (f"{ORDERS[0]}/0", f"{ORDERS[1]}/0", f"{ORDERS[0]}/1")
        )
        lines.append(
            f"| {name} | {jaccard(usual['kept'], other['kept']):.2f} | {jaccard(usual['kept'], drawn['kept']):.2f} "
            f"| {usual['loss']:.4f} | {other['loss']:.4f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--table", action="store_true", help="only make the table of what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        results = Results(PATH)
        for name in arguments.models:
            bench = Bench(name)
            for order, seed in ((ORDERS[0], 0), (ORDERS[1], 0), (ORDERS[0], 1)):
                results.once(f"{name}/{order}/{seed}", partial(kept_units, bench, order, seed))
    write_text(RESULTS / "orders.md", table())
    print(table())


if __name__ == "__main__":
    main()
