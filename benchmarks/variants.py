"""Variants of the Diff-Pruning score at equal size, before recovery: what the published code bases disagree on.

    python benchmarks/variants.py
    python benchmarks/variants.py --only ddpm-prune ddpm-exp

Stopped runs go on from the last result.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from bench import RESULTS, Results, spread
from secateur.base.files import write_text
from secateur.criteria import DiffPruningOptions, ScoringConfig, score
from secateur.data import Batch, calibration_batch
from secateur.evaluation import EvaluationConfig, LatencyOptions, evaluate_models
from secateur.models.network import example_inputs
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject
from secateur.schedules import CutConfig, one_shot, parse_target
from secateur.structure import remove

BASE = ScoringConfig(num_timesteps=50, num_images=64)
LOCAL, GLOBAL, BY_MACS = (CutConfig(allocation=name) for name in ("local", "global", "global-macs"))
SEEDS = (0, 1, 2)


def with_options(**options: Any) -> ScoringConfig:
    return replace(BASE, options=DiffPruningOptions(**options))


# Tuples of reconstruction are pairs of an image and one of 8 bins of timesteps.
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


class Variants:
    """The cuts of one model, and what they draw."""

    def __init__(self) -> None:
        self.subject = open_subject("digits-unet")
        self.dataset = open_data("digits", self.subject)

    def measure(self, name: str, seed: int) -> dict[str, float]:
        subject, (criterion, scoring, cut) = self.subject, VARIANTS[name]
        batch = Batch(calibration_batch(self.dataset, scoring.num_images, seed).sample)
        config = replace(scoring, seed=seed)
        scores = score(subject.model, subject.process, batch, subject.structure, criterion, config).scores
        request = (parse_target("macs=50%"), scores, cut, example_inputs(subject.model, 1))
        solution, _ = one_shot(subject.model, subject.structure, *request)
        models = {
            "dense": subject.model,
            "pruned": remove(copy.deepcopy(subject.model), subject.structure, solution.cut),
        }
        measured = EvaluationConfig(num_images=500, num_inference_steps=25, latency=LatencyOptions(rounds=1), seed=seed)
        result, _ = evaluate_models(models, subject.process, self.dataset, measured)
        found = {"fd": "fd", "ssim": "ssim", "loss": "denoising_loss"}
        return {key: result.final[metric].value for key, metric in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    arguments = parser.parse_args()
    variants, results = Variants(), Results(RESULTS / "variants.json")
    for seed, name in product(SEEDS, arguments.only):
        results.once(f"{name}/{seed}", partial(variants.measure, name, seed))
    lines = ["| variant | FD pruned | SSIM to dense | denoising loss |", "|---|---|---|---|"]
    for name in VARIANTS:
        runs = [record for key, record in results.records.items() if key.rpartition("/")[0] == name]
        cells = [spread([run[key] for run in runs], digits) for key, digits in (("fd", 1), ("ssim", 3), ("loss", 3))]
        lines += [f"| {name} | {' | '.join(cells)} |"] if runs else []
    write_text(RESULTS / "variants.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
