"""Squared errors of a refitted model against the dense model's output, by tenths of the timesteps.

    python benchmarks/timestep_errors.py
    python benchmarks/timestep_errors.py --models cifar-unet

Models are cut to half of their MACs by Diff-Pruning and refitted, not trained; 64 images in each tenth. Squared errors
weigh timesteps by these numbers, unsquared ones by their roots.
"""

from __future__ import annotations

import argparse

import torch

import secateur
from bench import NAMES, RESULTS, SCORING, Bench, prediction, write_json, write_text

BINS, IMAGES = 10, 64


def errors(name: str) -> list[float]:
    """The mean squared error of each tenth, from clean to noise."""
    bench = Bench(name)
    pruned = bench.pruned(bench.rank("diff-pruning", scoring=SCORING), "macs=50%")
    refitted = secateur.compensate(pruned, bench.dense, data=bench.data, process=bench.process)
    batch = bench.data.batch(
        torch.randperm(len(bench.data), generator=torch.Generator().manual_seed(0))[:IMAGES].tolist()
    )
    labelled = getattr(bench.dense.config, "num_embeds_ada_norm", None)
    labels = {"class_labels": batch.class_labels} if labelled else {}
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.sample.shape, generator=generator)
    found = []
    for start in range(BINS):
        timesteps = bench.process.timesteps((start + torch.rand(IMAGES, generator=generator)) / BINS)
        x_t = bench.process.add_noise(batch.sample, noise, timesteps)
        with torch.no_grad():
            student, teacher = (prediction(model, x_t, timesteps, labels) for model in (refitted, bench.dense))
        found.append((student - teacher).square().mean().item())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: errors(name) for name in asked.models}
    lines = [
        "| model | " + " | ".join(f"bin {index}" for index in range(BINS)) + " | largest over smallest |",
        "|---|" + "--:|" * (BINS + 1),
    ]
    for name, entry in found.items():
        cells = " | ".join(f"{value:.4f}" for value in entry)
        lines.append(f"| {name} | {cells} | {max(entry) / min(entry):.0f} |")
    write_json(RESULTS / "timestep-errors.json", found)
    write_text(RESULTS / "timestep-errors.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
