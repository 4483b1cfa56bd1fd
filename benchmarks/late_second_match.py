"""2ndMatch in a long recovery: all the way, only in its last fifth, or not at all.

    python benchmarks/late_second_match.py
    python benchmarks/late_second_match.py --table

The embedded U-Net at 30 % of its MACs, cut by Diff-Pruning and refitted; 5000 steps at batch 32, AdamW 2e-4 without
decay, distilled from the dense model without the noisy target. Every recovery has two parts, of four fifths and one
fifth of the steps; the second starts from the moving average of the first. A stopped run continues after the last
result.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from bench import RECOVERY, RESULTS, ROOT, Bench, cpu_timed, read_json, results_of, write_text
from secateur import RecoveryConfig

MODEL, TARGET = "digits-unet", "macs=30%"
FOUND = RESULTS / f"late-second-match-{MODEL}.json"
KEPT = ROOT.parent / "runs" / "late-second-match"  # models after the first part
LAST = 5  # one part in so many is the last one
ALONE = replace(
    RECOVERY, objective="distillation", weights={"denoising": 0.0}, learning_rate=2e-4, lr_schedule="constant"
)
BALANCED = secateur.recipe_named("2ndmatch-balanced").recovery
PARTS: dict[str, RecoveryConfig] = {
    "distillation": ALONE,
    "+ 2ndMatch, balanced, 1 in 5": replace(
        ALONE, objective="2ndmatch", jacobian=BALANCED.jacobian, weights=ALONE.weights | BALANCED.weights
    ),
    "+ 2ndMatch, as published": replace(ALONE, objective="2ndmatch"),
}
PAIRS = (
    ("distillation", "distillation"),
    ("distillation", "+ 2ndMatch, balanced, 1 in 5"),
    ("distillation", "+ 2ndMatch, as published"),
    ("+ 2ndMatch, balanced, 1 in 5", "+ 2ndMatch, balanced, 1 in 5"),
)


def run(seeds: list[int], steps: int) -> None:
    bench = Bench(MODEL)
    results = results_of("late-second-match", bench)
    refitted = secateur.compensate(
        bench.pruned(bench.rank("diff-pruning"), TARGET), bench.dense, data=bench.data, process=bench.process
    )
    results.once("refitted", partial(bench.measure, refitted, with_ftle=False))
    last = steps // LAST
    for seed, (first, second) in product(seeds, PAIRS):
        start = KEPT / f"{first} {seed}"
        begun = replace(PARTS[first], steps=steps - last, seed=seed)
        results.once(f"{first}/{seed}", partial(train, bench, refitted, begun, start))
        ended = replace(PARTS[second], steps=last, seed=seed + 1000)
        results.once(f"{first}, then {second}/{seed}", partial(train, bench, start, ended, None))


def train(bench: Bench, start: nn.Module | Path, recovery: RecoveryConfig, keep: Path | None) -> dict[str, float]:
    model, seconds = cpu_timed(partial(bench.recovered, start, recovery))
    if keep is not None:
        secateur.save_pretrained(model, keep)
    return {"steps": recovery.steps, "seconds": round(seconds, 1), **bench.measure(model, with_ftle=False)}


def table(records: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| first four fifths | last fifth | CPU s | FD | FD to dense | SSIM | denoising loss |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for name, one in records.items():
        if "fd" in one:
            first, _, second = name.partition("/")[0].partition(", then ")
            parts = [one, records[name.replace(f", then {second}", "")]] if second else [one]
            seconds = sum(part.get("seconds", 0) for part in parts)
            lines.append(
                f"| {first} | {second} | {seconds:.0f} | {one['fd']:.2f} | {one['rfd']:.2f} | {one['ssim']:.3f} "
                f"| {one['loss']:.4f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only make the table of what is there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=5000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        run(arguments.seeds, arguments.steps)
    text = table(read_json(FOUND))
    write_text(FOUND.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
