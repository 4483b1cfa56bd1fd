"""Do bootstrap intervals say how much a metric varies over seeds, and what does resampling cost?

    python benchmarks/bootstrap.py

`digits-sit`, 500 samples of 10 steps, eight disjoint sets of seeds: the standard deviation of every metric over the
sets, beside the mean of what the bootstrap says within each. Then seconds of a metric with its resamples on random
features, as many real ones as samples: 100 resamples, but one of the Fréchet distance of 2048 dimensions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from secateur.base.files import write_json, write_text
from secateur.evaluation import EvaluationConfig, evaluate_models
from secateur.evaluation.estimates import resample_counts
from secateur.evaluation.metrics.frechet import frechet_estimate
from secateur.evaluation.metrics.kid import kernel_distance
from secateur.evaluation.metrics.prdc import manifold_scores
from secateur.evaluation.statistics import statistics as feature_statistics
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject

RESULTS = Path(__file__).resolve().parent / "results"
SETS, NUM_IMAGES, STEPS = 8, 500, 10
KEYS = ("fd", "kid", "inception_score", "precision", "recall", "density", "coverage")
METRICS = ("frechet", "kid", "inception-score", "prdc")


def deviations() -> dict[str, dict[str, float]]:
    """Of every metric: the deviation over sets of seeds, and the mean deviation that the bootstrap gives."""
    subject = open_subject("digits-sit", device="cpu")
    loaded, dataset = subject.loaded, open_data("digits", subject)
    found = []
    for number in range(SETS):
        config = EvaluationConfig(
            metrics=METRICS, num_images=NUM_IMAGES, num_inference_steps=STEPS, seed=number * NUM_IMAGES
        )
        result, _ = evaluate_models({"dense": loaded.model}, loaded.process, dataset, config)
        found.append(result.dense.estimates)
    return {
        key: {
            "over_seeds": statistics.stdev(entry[key].value for entry in found),
            "bootstrap": statistics.mean(entry[key].std for entry in found),
        }
        for key in KEYS
    }


def costs(count: int, dim: int, frechet_resamples: int, resamples: int = 100) -> dict[str, Any]:
    """Seconds of each metric of `count` random features, its resamples included."""
    generator = torch.Generator().manual_seed(0)
    features, real = (torch.randn(count, dim, generator=generator) for _ in range(2))
    counts, few = resample_counts(count, resamples), resample_counts(count, frechet_resamples)
    gaussian = feature_statistics(real)
    calls: dict[str, Callable[[], Any]] = {
        f"fd, {frechet_resamples}": partial(frechet_estimate, features, gaussian, few),
        f"kid, {resamples}": partial(kernel_distance, features, real, counts),
        f"prdc, {resamples}": lambda: manifold_scores(features, real, counts).estimates(counts),
    }
    return {"samples": count, "dims": dim, "seconds": {name: seconds(call) for name, call in calls.items()}}


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return round(time.perf_counter() - begun, 2)


def main() -> None:
    torch.set_num_threads(1)
    spread = deviations()
    spent = [costs(1000, 64, 100), costs(5000, 2048, 1)]
    write_json(RESULTS / "bootstrap.json", {"threads": 1, "deviations": spread, "costs": spent})
    lines = ["| | " + " | ".join(KEYS) + " |", "|---|" + "--:|" * len(KEYS)]
    for kind, label in (("over_seeds", "deviation over seeds"), ("bootstrap", "mean bootstrap deviation")):
        lines.append(f"| {label} | " + " | ".join(f"{spread[key][kind]:.3g}" for key in KEYS) + " |")
    lines += ["", "| samples | dims | metric, resamples | seconds |", "|--:|--:|---|--:|"]
    lines += [
        f"| {entry['samples']} | {entry['dims']} | {name} | {value} |"
        for entry in spent
        for name, value in entry["seconds"].items()
    ]
    write_text(RESULTS / "bootstrap.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
