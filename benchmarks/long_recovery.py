"""Objectives over a longer recovery at the published learning rate, where 2ndMatch's published weights might help.

    python benchmarks/long_recovery.py
    python benchmarks/long_recovery.py --table

The embedded U-Net at 30 % of its MACs, cut by Diff-Pruning; 2000 steps at batch 32, AdamW 2e-4 without decay. A
stopped run continues after the last result.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

from bench import EVALUATION, RESULTS, Bench, read_json, results_of, write_text
from recovery import METHODS, table, train

MODEL, TARGET = "digits-unet", "macs=30%"
FOUND = RESULTS / f"long-recovery-{MODEL}.json"


def run(seeds: list[int], steps: int, methods: list[str], images: int) -> None:
    bench = Bench(MODEL, replace(EVALUATION, num_images=images))
    results = results_of("long-recovery", bench, with_ftle=True)
    pruned = bench.pruned(bench.rank("diff-pruning"), TARGET)
    results.once(f"{TARGET}/pruned", partial(bench.measure, pruned))
    for seed in seeds:
        for method in methods:
            config = replace(METHODS[method], steps=steps, learning_rate=2e-4, lr_schedule="constant", seed=seed)
            results.once(f"{TARGET}/steps/{method}/{seed}", partial(train, bench, pruned, config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table of what is there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--images", type=int, default=EVALUATION.num_images, help="samples that are measured")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments.seeds, arguments.steps, arguments.methods, arguments.images)
    text = table(read_json(FOUND))
    write_text(FOUND.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
