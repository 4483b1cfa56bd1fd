"""Batched calibration against one timestep at a time: the difference of the scores, and the speed-up.

python benchmarks/calibration.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

import secateur
from bench import RESULTS, timed, write_json

NUM_IMAGES, BATCHED = 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    loaded = secateur.load("digits-unet", device="cpu")
    images = torch.from_numpy(load_digits().images[:NUM_IMAGES]).float()[:, None] / 8 - 1

    def ranking(model: Any, sample: torch.Tensor, batch_size: int) -> secateur.Ranking:
        scoring = secateur.ScoringConfig(
            num_timesteps=arguments.timesteps, num_images=NUM_IMAGES, batch_size=batch_size
        )
        return secateur.rank(model, data=sample, process=loaded.process, criterion="taylor", scoring=scoring)

    def seconds(batch_size: int) -> float:
        return timed(lambda: ranking(loaded.model, images, batch_size))[1]

    seconds(BATCHED)  # warm up
    rounds = [(seconds(NUM_IMAGES), seconds(BATCHED)) for _ in range(arguments.rounds)]
    one, together = (statistics.median(column) for column in zip(*rounds, strict=True))
    exact = copy.deepcopy(loaded.model).double()
    apart, batched = (ranking(exact, images.double(), size) for size in (NUM_IMAGES, BATCHED))
    difference = max(
        float(np.max(np.abs(np.subtract(scores, batched.dims[name])) / np.abs(scores)))
        for name, scores in apart.dims.items()
    )
    result = {
        "timesteps": arguments.timesteps,
        "images": NUM_IMAGES,
        "seconds_one_timestep_at_a_time": one,
        "seconds_batched": together,
        "pairs_per_batch": BATCHED,
        "speedup": one / together,
        "largest_relative_difference_float64": difference,
        "threads": torch.get_num_threads(),
    }
    write_json(RESULTS / "calibration.json", result)
    print(f"one timestep at a time {one:.2f} s, batched {together:.2f} s: {one / together:.2f}x faster")
    print(f"largest relative difference of a score, float64: {difference:.1e}")


if __name__ == "__main__":
    main()
