"""Batched calibration against one timestep at a time: the same scores, and how much faster.

python benchmarks/calibration.py
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from secateur.base.files import write_json
from secateur.criteria.gradients import calibration_timesteps, summed_gradients
from secateur.data import Batch, calibration_batch
from secateur.runs.subject import open_data, open_model

RESULTS = Path(__file__).resolve().parent / "results"
NUM_TIMESTEPS, NUM_IMAGES, ROUNDS = 100, 8, 3
BATCHED = 128


def main() -> None:
    loaded, _ = open_model("digits-unet")
    batch = Batch(calibration_batch(open_data("digits", loaded), NUM_IMAGES, 0).sample)
    noise = torch.randn(batch.sample.shape, generator=torch.Generator().manual_seed(0))
    timesteps = calibration_timesteps(loaded.process, NUM_TIMESTEPS)

    def seconds(batch_size: int) -> float:
        begun = time.perf_counter()
        summed_gradients(loaded.model, loaded.process, batch, noise, timesteps, batch_size)
        return time.perf_counter() - begun

    seconds(BATCHED)  # warm up
    rounds = [(seconds(NUM_IMAGES), seconds(BATCHED)) for _ in range(ROUNDS)]
    one, together = (statistics.median(column) for column in zip(*rounds, strict=True))

    torch.set_default_dtype(torch.float64)
    loaded.model.double()
    exact = Batch(batch.sample.double())
    gradients = [
        summed_gradients(loaded.model, loaded.process, exact, noise.double(), timesteps, size)
        for size in (NUM_IMAGES, BATCHED)
    ]
    scale = max(value.abs().max().item() for value in gradients[0].values())
    difference = max((gradients[0][name] - gradients[1][name]).abs().max().item() for name in gradients[0]) / scale
    result = {
        "timesteps": NUM_TIMESTEPS,
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
    print(f"largest difference of a gradient, float64, relative to the largest gradient: {difference:.1e}")


if __name__ == "__main__":
    main()
