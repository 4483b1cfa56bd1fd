"""What our trainer adds to a bare PyTorch loop, and what importing takes.

    OMP_NUM_THREADS=2 python benchmarks/scale.py

The loop: both train the embedded models, cut to half of their MACs, on the same images in the same batches: one forward
and backward pass, clipping to norm 1, fused AdamW, an exponential average of the weights. The bare loop has nothing
else: its batches are drawn before the clock starts. Rounds of the two alternate, and the least time of each is
compared, as others may work on the machine; the CPU time of the thread that trains depends less on them, and leaves
out the thread that draws. What our trainer does beside the passes (drawing batches, timesteps and noise by seed,
checks, log lines, average with warm-up) is what the ratio is about.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from bench import RESULTS, write_json


def bare_loop(folder: Path, steps: int, batch_size: int) -> tuple[float, float]:
    """Seconds of a step of the bare loop, and of its CPU time, after a step that does not count."""
    model = secateur.from_pretrained(folder).train()
    average = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-4, weight_decay=0.0, fused=True)
    batches = [batch_of(model, batch_size, seed) for seed in range(steps + 1)]
    begun = begun_cpu = 0.0
    for number, (x, target, arguments) in enumerate(batches):
        if number == 1:
            begun, begun_cpu = time.perf_counter(), time.thread_time()
        loss = F.mse_loss(model(x, return_dict=False, **arguments)[0][:, : x.shape[1]], target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(model.parameters()), 0.01)
    return (time.perf_counter() - begun) / steps, (time.thread_time() - begun_cpu) / steps


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


def our_trainer(folder: Path, out: Path, steps: int, batch_size: int) -> tuple[float, float, float]:
    """Seconds of a step of `secateur.finetune`, and of its CPU time, after ten steps that do not count; and its peak
    memory in GiB."""
    recovery = secateur.RecoveryConfig(
        steps=steps + 10, batch_size=batch_size, log_every=10, grad_norms_every=0, checkpoint_every=10**6
    )
    taken = []
    for name, settings in {"short": replace(recovery, steps=10), "long": recovery}.items():
        begun = time.thread_time()
        secateur.finetune(str(folder), data="digits", out=out / name, recovery=settings)
        taken.append(time.thread_time() - begun)
    lines = [json.loads(line) for line in (out / "long" / "recovery" / "log.jsonl").read_text().splitlines()]
    seconds = lines[-1]["seconds"] - lines[0]["seconds"]
    return seconds / steps, (taken[1] - taken[0]) / steps, lines[-1]["peak_gib"]


def overhead(models: list[str], rounds: int, steps: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Our trainer beside the bare loop, for each embedded model."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in models:
            work = Path(place, name)
            secateur.prune(name, target="macs=50%", criterion="magnitude", out=work)
            pruned = work / "pruned"
            bare, ours, peak = [], [], 0.0
            for number in range(rounds):
                bare.append(bare_loop(pruned, steps, batch_size))
                *seconds, peak = our_trainer(pruned, work / str(number), steps, batch_size)
                ours.append(seconds)
            paired = statistics.median(one[0] / other[0] for one, other in zip(ours, bare, strict=True))
            (loop, loop_cpu), (trainer, trainer_cpu) = (map(min, zip(*each, strict=True)) for each in (bare, ours))
            found[name] = {
                "bare_ms": round(1000 * loop, 2),
                "trainer_ms": round(1000 * trainer, 2),
                "ratio": round(trainer / loop, 3),
                "paired": round(paired, 3),
                "bare_cpu_ms": round(1000 * loop_cpu, 2),
                "trainer_cpu_ms": round(1000 * trainer_cpu, 2),
                "cpu_ratio": round(trainer_cpu / loop_cpu, 3),
                "peak_gib": peak,
                "threads": torch.get_num_threads(),
            }
            print(name, found[name], flush=True)
    return found


def import_seconds(rounds: int = 5) -> dict[str, float]:
    """The least seconds of a process that imports the package, and of one that prints the help."""
    commands = {"import": ["-c", "import secateur"], "help": ["-m", "secateur", "--help"], "nothing": ["-c", ""]}
    found = {}
    for name, arguments in commands.items():
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - begun)
        found[name] = round(min(times), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--models", nargs="*", default=["digits-unet", "digits-sit"])
    asked = parser.parse_args()
    result = {"loop": overhead(asked.models, asked.rounds, asked.steps, asked.batch_size), "seconds": import_seconds()}
    print(result["seconds"])
    write_json(RESULTS / "scale.json", result)


if __name__ == "__main__":
    main()
