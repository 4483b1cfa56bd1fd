"""Batched calibration against one timestep at a time: the same scores, and how much faster.

python benchmarks/calibration.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from secateur.base.files import write_json
from secateur.criteria import ScoringConfig, score
from secateur.data import Batch, calibration_batch
from secateur.runs.data import open_data
from secateur.runs.subject import open_subject

RESULTS = Path(__file__).resolve().parent / "results"
NUM_TIMESTEPS, NUM_IMAGES, ROUNDS = 100, 8, 3
BATCHED = 128


def main() -> None:
    subject = open_subject("digits-unet")
    batch = Batch(calibration_batch(open_data("digits", subject), NUM_IMAGES, 0).sample)

    def scores(images: Batch, batch_size: int) -> Mapping[str, Tensor]:
        config = ScoringConfig(num_timesteps=NUM_TIMESTEPS, batch_size=batch_size)
        return score(subject.model, subject.process, images, subject.structure, "taylor", config).scores

    def seconds(batch_size: int) -> float:
        begun = time.perf_counter()
        scores(batch, batch_size)
        return time.perf_counter() - begun

    seconds(BATCHED)  # warm up
    rounds = [(seconds(NUM_IMAGES), seconds(BATCHED)) for _ in range(ROUNDS)]
    one, together = (statistics.median(column) for column in zip(*rounds, strict=True))

    torch.set_default_dtype(torch.float64)
    subject.model.double()
    apart, batched = (scores(Batch(batch.sample.double()), size) for size in (NUM_IMAGES, BATCHED))
    difference = max(((apart[name] - batched[name]).abs() / apart[name]).max().item() for name in apart)
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
    print(f"largest relative difference of a score, float64: {difference:.1e}")


if __name__ == "__main__":
    main()
