"""What our trainer adds to a bare PyTorch loop, what importing takes, and what large models take of memory.

    OMP_NUM_THREADS=2 python benchmarks/scale.py            # the loop and the imports
    python benchmarks/scale.py --memory                     # memory and work of large models, counted

The loop: both train the embedded models, cut to half of their MACs, on the same images in the same batches: one forward
and backward pass, clipping to norm 1, fused AdamW, an exponential average of the weights. The bare loop has nothing
else: its batches are drawn before the clock starts. Rounds of the two alternate, and the least time of each is
compared, as others may work on the machine. What our trainer does beside the passes (drawing batches, timesteps and
noise by seed, checks, log lines, average with warm-up) is what the ratio is about.

Memory: models of the published sizes without weights (the meta device), in bfloat16, one image to a pass. Bytes are
those of weights, optimizer, average, teacher and of the tensors that a pass makes, counted by running it on tensors
without data; a kernel's own workspace and what an allocator wastes are not in them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from bench import RESULTS, write_json, write_text

SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SD35 = {
    "sample_size": 128,
    "num_layers": 38,
    "num_attention_heads": 38,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
DIT = {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28, "out_channels": 8, "sample_size": 32}
LARGE: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "DiT-XL/2, 256 px": (lambda: diffusers.DiTTransformer2DModel(**DIT), secateur.DiffusionProcess()),
    "SD 1.5, 512 px": (
        lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        secateur.DiffusionProcess(),
    ),
    "SDXL, 1024 px": (lambda: diffusers.UNet2DConditionModel(**SDXL), secateur.DiffusionProcess()),
    "SD 3.5 L, 1024 px": (lambda: diffusers.SD3Transformer2DModel(**SD35), secateur.FlowProcess()),
    "Flux, 1024 px": (lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True), secateur.FlowProcess()),
}
PLAIN = secateur.RecoveryConfig(batch_size=1, objective="distillation", mixed_precision="bf16")
SAVING = replace(PLAIN, gradient_checkpointing=True, offload=("ema", "teacher"))
WAYS: dict[str, tuple[secateur.RecoveryConfig, int]] = {
    "recovery": (PLAIN, 1),
    "+ offload, checkpointing": (SAVING, 1),
    "+ bf16 weights, 8-bit AdamW": (replace(SAVING, weight_precision="bf16", optimizer="adamw8bit"), 1),
    "+ bf16 weights, LoRA 16": (replace(SAVING, weight_precision="bf16", lora=secateur.LoraConfig(16)), 1),
    "recovery on 8, FSDP": (replace(PLAIN, parallel="fsdp", gradient_checkpointing=True, batch_size=8), 8),
}
RANKING = secateur.ScoringConfig(num_images=1, batch_size=1, options=secateur.TaylorOptions("abs-then-sum"))
DEVICES = {"24 GB": (24e9, 1), "80 GB": (80e9, 1), "8 x 80 GB": (80e9, 8)}


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


def overhead(rounds: int, steps: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Our trainer beside the bare loop, for each embedded model."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name in ("digits-unet", "digits-sit"):
            work = Path(place, name)
            secateur.prune(name, target="macs=50%", criterion="magnitude", out=work)
            pruned = work / "pruned"
            bare, ours, peak = [], [], 0.0
            for number in range(rounds):
                bare.append(bare_loop(pruned, steps, batch_size))
                seconds, peak = our_trainer(pruned, work / str(number), steps, batch_size)
                ours.append(seconds)
            found[name] = {
                "bare_ms": round(1000 * min(bare), 2),
                "trainer_ms": round(1000 * min(ours), 2),
                "ratio": round(min(ours) / min(bare), 3),
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


def counted(names: list[str]) -> dict[str, dict[str, Any]]:
    """Gigabytes of each stage and setting, and TFLOP of one image's step, for the models of `names`."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        build, process = LARGE[name]
        with torch.device("meta"):
            model = build().to(torch.bfloat16)
        entry: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e9}
        entry["weights"] = 2 * entry["parameters"]
        begun = time.perf_counter()
        ranked = secateur.ranking_memory(model, process, "taylor", RANKING)
        assert ranked is not None
        entry["rank by taylor"] = ranked.peak / 1e9
        for way, (config, processes) in WAYS.items():
            taken = secateur.recovery_memory(model, model, process, config, torch.device("cpu"), processes)
            entry[way] = taken.total / 1e9
            print(name, way, taken, f"{time.perf_counter() - begun:.0f} s", flush=True)
        found[name] = entry
    return found


def fits(entry: dict[str, Any]) -> list[str]:
    """For each device the first way of recovering that fits there."""
    chosen = []
    for size, devices in DEVICES.values():
        ways = [way for way, (_, processes) in WAYS.items() if processes <= devices]
        ways = ways if devices == 1 else [way for way in ways if WAYS[way][1] == devices]
        chosen.append(next((way for way in ways if entry[way] < 0.95 * size), "none"))
    return chosen


def table(found: dict[str, dict[str, Any]]) -> str:
    """Rows of models, columns of stages, in GB; then what fits where."""
    stages = ["parameters", "weights", "rank by taylor", *WAYS]
    lines = ["| | " + " | ".join(stages) + " |", "|---|" + "--:|" * len(stages)]
    for name, entry in found.items():
        cells = [f"{entry[stage]:.1f}" if stage != "parameters" else f"{entry[stage]:.2f}B" for stage in stages]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| recovery that fits on | " + " | ".join(DEVICES) + " |", "|---|" + "---|" * len(DEVICES)]
    lines += [f"| {name} | " + " | ".join(fits(entry)) + " |" for name, entry in found.items()]
    return "\n".join(lines) + "\n"


def checkpointing() -> dict[str, tuple[float, float]]:
    """GB that a micro-batch of four keeps for DiT-XL/2 without and with gradient checkpointing, by objective."""
    with torch.device("meta"):
        model = LARGE["DiT-XL/2, 256 px"][0]()
    found = {}
    for objective in ("denoising", "distillation", "features", "2ndmatch"):
        config = replace(PLAIN, batch_size=4, objective=objective)
        taken = [
            secateur.recovery_memory(
                model, model, secateur.DiffusionProcess(), replace(config, gradient_checkpointing=saves)
            )
            for saves in (False, True)
        ]
        found[objective] = (round(taken[0].passes / 1e9, 2), round(taken[1].passes / 1e9, 2))
        print("checkpointing", objective, found[objective], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--memory", action="store_true", help="count memory instead")
    parser.add_argument("--models", nargs="*", default=list(LARGE), choices=list(LARGE))
    asked = parser.parse_args()
    if asked.memory:
        found = counted(asked.models)
        saved = checkpointing()
        lines = ["", "| gradients and passes of DiT-XL/2, batch 4, GB | kept | checkpointed |", "|---|--:|--:|"]
        lines += [f"| {name} | {kept} | {saving} |" for name, (kept, saving) in saved.items()]
        text = table(found) + "\n".join(lines) + "\n"
        write_json(RESULTS / "memory.json", {"models": found, "passes": saved})
        write_text(RESULTS / "memory.md", text)
        print(text)
        return
    result = {"loop": overhead(asked.rounds, asked.steps, asked.batch_size), "seconds": import_seconds()}
    print(result["seconds"])
    write_json(RESULTS / "scale.json", result)


if __name__ == "__main__":
    main()
