"""Variants of the Diff-Pruning score at equal size, before recovery: where the published code bases disagree.

    python benchmarks/variants.py
    python benchmarks/variants.py --only ddpm-prune ddpm-exp

A stopped run continues after the last result.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from bench import EVALUATION, RESULTS, Bench, Results, spread, write_text
from secateur import CutConfig, DiffPruningOptions, ScoringConfig

BASE = ScoringConfig(num_timesteps=50, num_images=64)
LOCAL, GLOBAL, BY_MACS = (CutConfig(allocation=name) for name in ("local", "global", "global-macs"))


def with_options(**options: Any) -> ScoringConfig:
    return replace(BASE, options=DiffPruningOptions(**options))


# A tuple of reconstruction is an image at a timestep in one of 8 bins.
REFIT = ScoringConfig(num_timesteps=8, num_images=64)
VARIANTS: dict[str, tuple[str, ScoringConfig, CutConfig]] = {
    "default (sum-then-abs, abs, threshold 0.05)": ("diff-pruning", BASE, LOCAL),
    "ddpm-prune": ("diff-pruning", with_options(reduction="ddpm-prune"), LOCAL),
    "ddpm-exp": ("diff-pruning", with_options(reduction="ddpm-exp"), LOCAL),
    "reconstruction": ("reconstruction", REFIT, LOCAL),
    "reconstruction, global-macs": ("reconstruction", REFIT, BY_MACS),
    "abs-then-sum": ("diff-pruning", with_options(timestep_reduction="abs-then-sum"), LOCAL),
    "square": ("diff-pruning", with_options(reduction="square"), LOCAL),
    "threshold 0": ("diff-pruning", with_options(threshold=0.0), LOCAL),
    "threshold 0.2": ("diff-pruning", with_options(threshold=0.2), LOCAL),
    "global": ("diff-pruning", BASE, GLOBAL),
    "global-macs": ("diff-pruning", BASE, BY_MACS),
}


def measure(bench: Bench, name: str, seed: int) -> dict[str, float]:
    """The quality of samples of the model cut by a variant, before any recovery."""
    criterion, scoring, cut = VARIANTS[name]
    pruned = bench.pruned(bench.rank(criterion, seed, scoring), "macs=50%", cut)
    return bench.measure(pruned, with_ftle=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=500, help="samples that are measured")
    arguments = parser.parse_args()
    results = Results(RESULTS / "variants.json")
    bench = Bench("digits-unet", replace(EVALUATION, num_images=arguments.images, num_inference_steps=25))
    for seed, name in product(arguments.seeds, arguments.only):
        results.once(f"{name}/{seed}", partial(measure, bench, name, seed))
    lines = ["| variant | FD pruned | SSIM to dense | denoising loss |", "|---|---|---|---|"]
    for name in VARIANTS:
        runs = [record for key, record in results.records.items() if key.rpartition("/")[0] == name]
        if runs:
            values = [[run[key] for run in runs] for key in ("fd", "ssim", "loss")]
            cells = [spread(found, digits) for found, digits in zip(values, (1, 3, 3), strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    write_text(RESULTS / "variants.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
