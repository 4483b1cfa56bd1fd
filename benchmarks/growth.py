"""Which timesteps 2ndMatch's Jacobian term listens to: its share by timestep, plain and relative to the teacher.

    python benchmarks/growth.py

Pruned models of half the MACs before any recovery; 64 images in each of ten bins of timesteps.
"""

from __future__ import annotations

import torch

from bench import RESULTS, Bench
from secateur.base.files import write_json, write_text
from secateur.models.jacobian import project, squared_lengths, unit_directions
from secateur.recovery.sensitivity import FLOOR

BINS, IMAGES = 10, 64


def shares(name: str) -> dict[str, list[float]]:
    """Share of each bin, from clean to noise, in the sums over bins of both squared mismatches."""
    bench = Bench(name)
    process, batch = bench.loaded.process, bench.batch(IMAGES, 0)
    pruned = bench.pruned(bench.cut("diff-pruning", "macs=50%", 0))
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"growth": [], "plain": [], "relative": []}
    for u in (torch.arange(BINS) + 0.5) / BINS:
        timesteps = process.timesteps(u.expand(IMAGES))
        noise, v = (torch.randn(batch.sample.shape, generator=generator) for _ in range(2))
        x_t = process.add_noise(batch.sample, noise, timesteps)
        student, teacher = (
            squared_lengths(
                project(model, x_t, timesteps, batch.conditions, unit_directions([v]), create_graph=False)[1]
            )
            for model in (pruned, bench.dense)
        )
        found["growth"].append(teacher.mean().item())
        found["plain"].append((student - teacher).square().mean().item())
        found["relative"].append(((student - teacher) / (teacher + FLOOR)).square().mean().item())
    return {
        key: values if key == "growth" else [value / sum(values) for value in values] for key, values in found.items()
    }


def main() -> None:
    found = {name: shares(name) for name in ("digits-unet", "digits-sit")}
    lines = ["| model | quantity | " + " | ".join(f"bin {index}" for index in range(BINS)) + " |"]
    lines.append("|---|---|" + "--:|" * BINS)
    for name, entry in found.items():
        lines.append(f"| {name} | teacher's growth | " + " | ".join(f"{v:.2g}" for v in entry["growth"]) + " |")
        for key in ("plain", "relative"):
            lines.append(f"| {name} | share, {key} | " + " | ".join(f"{100 * v:.0f} %" for v in entry[key]) + " |")
    write_json(RESULTS / "growth.json", found)
    write_text(RESULTS / "growth.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
