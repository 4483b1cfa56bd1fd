"""Variants of the Diff-Pruning score at equal size, before recovery: what the published code bases disagree on.

python benchmarks/variants.py
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from secateur.base.files import write_json, write_text
from secateur.criteria import DiffPruningOptions, ScoringConfig, score
from secateur.data import Batch, calibration_batch
from secateur.evaluation import EvaluationConfig, LatencyOptions, evaluate_models
from secateur.models.network import example_inputs
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject
from secateur.schedules import CutConfig, one_shot, parse_target
from secateur.structure import remove

RESULTS = Path(__file__).resolve().parent / "results"
BASE = ScoringConfig(num_timesteps=50, num_images=64)
LOCAL, GLOBAL = CutConfig(), CutConfig(allocation="global")
SEEDS = (0, 1, 2)


def with_options(**options: Any) -> ScoringConfig:
    return replace(BASE, options=DiffPruningOptions(**options))


VARIANTS = {
    "default (sum-then-abs, abs, sum, threshold 0.05)": (BASE, LOCAL),
    "threshold 0": (with_options(threshold=0.0), LOCAL),
    "threshold 0.2": (with_options(threshold=0.2), LOCAL),
    "abs-then-sum": (with_options(timestep_reduction="abs-then-sum"), LOCAL),
    "square": (with_options(reduction="square"), LOCAL),
    "ddpm-prune": (with_options(reduction="ddpm-prune"), LOCAL),
    "ddpm-exp": (with_options(reduction="ddpm-exp"), LOCAL),
    "global allocation": (BASE, GLOBAL),
}


def main() -> None:
    subject = open_subject("digits-unet")
    structure = subject.structure
    dataset = open_data("digits", subject)
    rows = {}
    for name, (scoring, cut) in VARIANTS.items():
        runs = []
        for seed in SEEDS:
            batch = Batch(calibration_batch(dataset, scoring.num_images, seed).sample)
            config = replace(scoring, seed=seed)
            scores = score(subject.model, subject.process, batch, structure, "diff-pruning", config).scores
            request = (parse_target("macs=50%"), scores, cut, example_inputs(subject.model, 1))
            solution, _ = one_shot(subject.model, structure, *request)
            pruned = remove(copy.deepcopy(subject.model), structure, solution.cut)
            measured = EvaluationConfig(
                num_images=500, num_inference_steps=25, latency=LatencyOptions(rounds=1), seed=seed
            )
            result, _ = evaluate_models({"dense": subject.model, "pruned": pruned}, subject.process, dataset, measured)
            entry = result.final
            runs.append(
                {
                    "fd": entry["fd"].value,
                    "ssim": entry["ssim"].value,
                    "loss": entry["denoising_loss"].value,
                }
            )
        rows[name] = {
            key: (statistics.mean(r[key] for r in runs), statistics.stdev(r[key] for r in runs)) for key in runs[0]
        }
        print(name, rows[name], flush=True)
    lines = ["| variant | FD pruned | SSIM to dense | denoising loss |", "|---|---|---|---|"]
    for name, row in rows.items():
        cells = [
            f"{row[key][0]:.{digits}f} ± {row[key][1]:.{digits}f}"
            for key, digits in (("fd", 1), ("ssim", 3), ("loss", 3))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    write_json(RESULTS / "variants.json", rows)
    write_text(RESULTS / "variants.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
