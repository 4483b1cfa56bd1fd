"""Which timesteps 2ndMatch's Jacobian term comes from: its share by timestep, absolute and relative to the teacher.

    python benchmarks/growth.py

Models are pruned to half of the MACs and not recovered; 64 images in each of ten bins of timesteps. The growth of a
network along a direction v is |J^T v|^2, with J its Jacobian with respect to the noisy sample.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import RESULTS, SCORING, Bench, prediction, write_json, write_text
from train_dense import digits

FLOOR = 1e-3  # of the relative mismatch, as in the objective
BINS = 10


def growth(
    model: nn.Module, x_BCHW: Tensor, timesteps: Tensor, conditions: dict[str, Tensor], direction: Tensor
) -> Tensor:
    """|J^T v|^2 of each sample, (B,); `direction` has length one."""
    x = x_BCHW.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        output = prediction(model, x, timesteps, conditions)
        (product,) = torch.autograd.grad(output, x, direction)
    return product.square().flatten(1).sum(1)


def shares(name: str, images: int, bins: int) -> dict[str, list[float]]:
    """Share of each bin, from clean to noise, in the sums over bins of both squared mismatches."""
    bench = Bench(name)
    pruned = bench.pruned(bench.rank("diff-pruning", scoring=SCORING), "macs=50%")
    batch = digits().batch(torch.randperm(1797, generator=torch.Generator().manual_seed(0))[:images].tolist())
    labelled = getattr(bench.dense.config, "num_embeds_ada_norm", None)
    labels: dict[str, Any] = {"class_labels": batch.class_labels} if labelled else {}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"growth": [], "plain": [], "relative": []}
    for u in (torch.arange(bins) + 0.5) / bins:
        timesteps = bench.process.timesteps(u.expand(images))
        noise, v = (torch.randn(batch.sample.shape, generator=generator) for _ in range(2))
        v = v / v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        x_t = bench.process.add_noise(batch.sample, noise, timesteps)
        student, teacher = (growth(model, x_t, timesteps, labels, v) for model in (pruned, bench.dense))
        found["growth"].append(teacher.mean().item())
        found["plain"].append((student - teacher).square().mean().item())
        found["relative"].append(((student - teacher) / (teacher + FLOOR)).square().mean().item())
    return {
        key: values if key == "growth" else [value / sum(values) for value in values] for key, values in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["digits-unet", "digits-sit"])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--bins", type=int, default=BINS)
    asked = parser.parse_args()
    found = {name: shares(name, asked.images, asked.bins) for name in asked.models}
    lines = ["| model | quantity | " + " | ".join(f"bin {index}" for index in range(asked.bins)) + " |"]
    lines.append("|---|---|" + "--:|" * asked.bins)
    for name, entry in found.items():
        lines.append(f"| {name} | teacher's growth | " + " | ".join(f"{v:.2g}" for v in entry["growth"]) + " |")
        for key in ("plain", "relative"):
            lines.append(f"| {name} | share, {key} | " + " | ".join(f"{100 * v:.0f} %" for v in entry[key]) + " |")
    write_json(RESULTS / "growth.json", found)
    write_text(RESULTS / "growth.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
