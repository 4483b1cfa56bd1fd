"""Objectives over a longer recovery at the published learning rate, where 2ndMatch's own weights might pay.

    python benchmarks/long_recovery.py
    python benchmarks/long_recovery.py --table

The embedded U-Net at 30 % of its MACs, cut by Diff-Pruning; 2000 steps at batch 32, AdamW 2e-4 without decay. Stopped
runs go on from the last result.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from bench import RESULTS, Bench, Results
from recovery import METHODS, table, train
from secateur.base.files import read_json, write_text

MODEL, TARGET = "digits-unet", "macs=30%"
FOUND = RESULTS / f"long-recovery-{MODEL}.json"


def run(seeds: list[int], steps: int, methods: list[str]) -> None:
    bench, results = Bench(MODEL), Results(FOUND)
    pruned = bench.pruned(bench.cut("diff-pruning", TARGET, 0))
    results.once("dense", lambda: bench.measure(bench.dense))
    results.once(f"{TARGET}/pruned", lambda: bench.measure(pruned))
    for seed in seeds:
        for method in methods:
            config = replace(METHODS[method], steps=steps, learning_rate=2e-4, lr_schedule="constant", seed=seed)
            results.once(f"{TARGET}/steps/{method}/{seed}", lambda config=config: train(bench, pruned, config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table of what is there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments.seeds, arguments.steps, arguments.methods)
    text = table(read_json(FOUND))
    write_text(FOUND.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
