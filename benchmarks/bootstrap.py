"""Whether bootstrap intervals predict how much a metric varies over seeds.

    python benchmarks/bootstrap.py

`digits-sit`, 500 samples of 10 steps, eight disjoint sets of seeds: the standard deviation of every metric over the
sets, and the mean of the standard deviations that the bootstrap estimates within each set.
"""

from __future__ import annotations

import argparse
import statistics

import secateur
from bench import RESULTS, write_json, write_text

KEYS = ("fd", "kid", "inception_score", "precision", "recall", "density", "coverage")
METRICS = ("frechet", "kid", "inception-score", "prdc")
WIDTH = 2 * 1.96  # width of an interval in standard deviations


def deviations(sets: int, images: int, steps: int) -> dict[str, dict[str, float]]:
    """For every metric, the standard deviation over sets of seeds, and the mean of the bootstrap's estimates."""
    found = []
    for number in range(sets):
        config = secateur.EvaluationConfig(
            metrics=METRICS, num_images=images, num_inference_steps=steps, seed=number * images
        )
        found.append(secateur.evaluate("digits-sit", data="digits", evaluation=config, device="cpu"))
    spread = {}
    for key in KEYS:
        estimates = [result[key] for result in found]
        intervals = [estimate.interval for estimate in estimates if estimate.interval is not None]
        within = [(high - low) / WIDTH for low, high in intervals]
        over_seeds = statistics.stdev(estimate.value for estimate in estimates)
        spread[key] = {"over_seeds": over_seeds, "bootstrap": statistics.mean(within)}
    return spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sets", type=int, default=8)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    spread = deviations(arguments.sets, arguments.images, arguments.steps)
    write_json(RESULTS / "bootstrap.json", {"deviations": spread})
    lines = ["| | " + " | ".join(KEYS) + " |", "|---|" + "--:|" * len(KEYS)]
    for kind, label in (("over_seeds", "deviation over seeds"), ("bootstrap", "mean bootstrap deviation")):
        lines.append(f"| {label} | " + " | ".join(f"{spread[key][kind]:.3g}" for key in KEYS) + " |")
    write_text(RESULTS / "bootstrap.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
