"""What our trainer adds to a bare PyTorch loop: steps per second side by side, and the memory that a step takes.

    OMP_NUM_THREADS=2 python benchmarks/scale.py

Both train the embedded models, cut to half of their MACs, on the same images in the same batches: one forward and
backward pass, clipping to norm 1, fused AdamW, an exponential average of the weights. The bare loop has nothing else:
its batches are drawn before the clock starts. Rounds of the two alternate, and the least time of each is compared, as
others may work on the machine. What our trainer does beside the passes (drawing batches, timesteps and noise by seed,
checks, log lines, average with warm-up) is what the ratio is about.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from bench import RESULTS, write_json


def bare_loop(folder: Path, steps: int, batch_size: int) -> float:
    """Seconds of a step of the bare loop, after a step that does not count."""
    model = secateur.from_pretrained(folder).train()
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4, weight_decay=0.0, fused=True)
    batches = [batch_of(model, batch_size, seed) for seed in range(steps + 1)]
    begun = 0.0
    for number, (x, target, arguments) in enumerate(batches):
        if number == 1:
            begun = time.perf_counter()
        loss = F.mse_loss(model(x, return_dict=False, **arguments)[0][:, : x.shape[1]], target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 0.01)
    return (time.perf_counter() - begun) / steps


def batch_of(model: nn.Module, batch_size: int, seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Noisy digits, the noise, and timesteps with labels where the model takes them."""
    digits = load_digits()
    torch.manual_seed(seed)
    index = torch.randint(len(digits.images), (batch_size,))
    x = torch.from_numpy(digits.images).float()[index, None] / 8 - 1
    noise, t = torch.randn_like(x), torch.randint(1000, (batch_size,))
    config: Any = model.config
    labels = {"class_labels": torch.from_numpy(digits.target)[index]} if "num_embeds_ada_norm" in dict(config) else {}
    return DDPMScheduler().add_noise(x, noise, t), noise, {"timestep": t, **labels}


def our_trainer(folder: Path, out: Path, steps: int, batch_size: int) -> tuple[float, float]:
    """Seconds of a step of `secateur.finetune`, after ten steps that do not count, and its peak memory in GiB."""
    recovery = secateur.RecoveryConfig(
        steps=steps + 10, batch_size=batch_size, log_every=10, grad_norms_every=0, checkpoint_every=10**6
    )
    secateur.finetune(str(folder), data="digits", out=out, recovery=recovery)
    lines = [json.loads(line) for line in (out / "recovery" / "log.jsonl").read_text().splitlines()]
    return (lines[-1]["seconds"] - lines[0]["seconds"]) / steps, lines[-1]["peak_gib"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    asked = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in ("digits-unet", "digits-sit"):
            work = Path(place, name)
            secateur.prune(name, target="macs=50%", criterion="magnitude", out=work)
            pruned = work / "pruned"
            bare, ours, peak = [], [], 0.0
            for number in range(asked.rounds):
                bare.append(bare_loop(pruned, asked.steps, asked.batch_size))
                seconds, peak = our_trainer(pruned, work / str(number), asked.steps, asked.batch_size)
                ours.append(seconds)
            found[name] = {
                "bare_ms": round(1000 * min(bare), 2),
                "trainer_ms": round(1000 * min(ours), 2),
                "ratio": round(min(ours) / min(bare), 3),
                "peak_gib": peak,
                "threads": torch.get_num_threads(),
            }
            print(name, found[name], flush=True)
    write_json(RESULTS / "scale.json", found)


if __name__ == "__main__":
    main()
