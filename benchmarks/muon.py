"""In which precision Muon's iteration should run here: its seconds, and the losses that it trains to.

    python benchmarks/muon.py

Orthogonalizes matrices of the shapes of the embedded models in float32 and in bfloat16, and trains a small network with
each from the same start on the same batches.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.recovery import optimizers

RESULTS = Path(__file__).parent / "results"
SHAPES = ((64, 576), (96, 384), (384, 96), (576, 96), (512, 512))


def seconds(dtype: torch.dtype) -> dict[str, float]:
    found = {}
    for shape in SHAPES:
        matrices = torch.randn(8, *shape)
        optimizers.orthogonalized(matrices, dtype)
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            optimizers.orthogonalized(matrices, dtype)
            times.append(time.perf_counter() - begun)
        found[f"8 x {shape[0]} x {shape[1]}"] = round(1000 * min(times), 2)
    return found


def final_loss(dtype: torch.dtype, seed: int, steps: int = 300) -> float:
    """Mean loss over the last tenth of the steps of a network that learns another's outputs."""
    torch.manual_seed(seed)
    target = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
    model = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 32))
    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    optimizer = secateur.recovery.Muon(matrices, [p for p in model.parameters() if p.ndim == 1])
    losses = []
    plain = optimizers.orthogonalized
    with mock.patch.object(optimizers, "orthogonalized", lambda matrices: plain(matrices, dtype)):
        for step in range(steps):
            optimizers.set_learning_rate(optimizer, lambda highest, step=step: highest * (1 - step / steps))
            x = torch.randn(64, 32)
            loss = F.mse_loss(model(x), target(x).detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return sum(losses[-steps // 10 :]) / (steps // 10)


def main() -> None:
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found[name] = {"ms": seconds(dtype), "losses": [final_loss(dtype, seed) for seed in range(3)]}
        print(name, found[name], flush=True)
    RESULTS.joinpath("muon.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
