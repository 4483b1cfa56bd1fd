"""Settings of 2ndMatch side by side: its weight, at how many steps it is used, and dropout.

    python benchmarks/second_match.py
    python benchmarks/second_match.py --table

The embedded U-Net at 30 % of its MACs, cut by Diff-Pruning, trained as in benchmarks/recovery.py at equal steps;
its results are reused. A stopped run continues after the last result.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from typing import Any

from bench import EVALUATION, RECOVERY, RESULTS, Bench, collect, read_json, results_of, spread, write_text
from recovery import METHODS, train
from secateur import JacobianConfig, RecoveryConfig

MODEL, TARGET = "digits-unet", "macs=30%"
FOUND = RESULTS / f"second-match-{MODEL}.json"
SEEDS = (0, 1, 2)
DIGITS = {"fd": 2, "ssim": 3, "loss": 4, "ftle": 3}
PUBLISHED = replace(RECOVERY, objective="2ndmatch")
SETTINGS: dict[str, RecoveryConfig] = {
    "+ 2ndMatch, as published, 1 in 4": replace(PUBLISHED, jacobian=JacobianConfig(every_n=4)),
    "+ 2ndMatch, automatic weight": replace(PUBLISHED, jacobian=JacobianConfig(auto_weight=True)),
    "+ 2ndMatch, relative": replace(PUBLISHED, jacobian=JacobianConfig(relative=True)),
    "+ 2ndMatch, balanced, every step": replace(
        PUBLISHED, weights={"jacobian": 10 / 64}, jacobian=JacobianConfig(relative=True, auto_weight=True)
    ),
    "denoising, dropout 0.1": replace(RECOVERY, dropout=0.1),
    "+ distillation, dropout 0.1": replace(RECOVERY, objective="distillation", dropout=0.1),
    "+ 2ndMatch, balanced, 1 in 5, dropout 0.1": replace(METHODS["+ 2ndMatch, balanced, 1 in 5"], dropout=0.1),
}


def run(seeds: list[int], steps: int, settings: list[str], images: int) -> None:
    bench = Bench(MODEL, replace(EVALUATION, num_images=images))
    results = results_of("second-match", bench, with_ftle=True)
    pruned = bench.pruned(bench.rank("diff-pruning"), TARGET)
    for seed in seeds:
        for name in settings:
            config = replace(SETTINGS[name], steps=steps, seed=seed)
            results.once(f"{name}/{seed}", partial(train, bench, pruned, config))


def table(records: dict[str, Any]) -> str:
    """Markdown: a row for every setting, over the seeds that all of them have."""
    measured = {name.removeprefix(f"{TARGET}/steps/"): record for name, record in records.items()}
    names = [name for name in (*METHODS, *SETTINGS) if collect(measured, f"{name}/", "fd")]
    shared = set.intersection(*({key for key in SEEDS if f"{name}/{key}" in measured} for name in names))
    lines = ["| objective | FD | SSIM | denoising loss | FTLE |", "|---|--:|--:|--:|--:|"]
    for name in names:
        found = [measured[f"{name}/{seed}"] for seed in sorted(shared)]
        cells = (spread([record[key] for record in found], digits) for key, digits in DIGITS.items())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table of what is there")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--images", type=int, default=EVALUATION.num_images, help="samples that are measured")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments.seeds, arguments.steps, arguments.settings, arguments.images)
    both = [path for path in (RESULTS / f"recovery-{MODEL}.json", FOUND) if path.is_file()]
    text = table({key: record for path in both for key, record in read_json(path).items()})
    write_text(FOUND.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
