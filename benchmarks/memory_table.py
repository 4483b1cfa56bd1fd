"""Predicted peak memory and time of every stage for large models, and what makes it fit on common devices.

    python benchmarks/memory_table.py                    # all models, in minutes each; goes on where it was stopped
    python benchmarks/memory_table.py --models "SDXL, 1024 px"
    python benchmarks/memory_table.py --table            # the tables again, from the results kept

Nothing here is measured: models have the released configurations and no weights (the meta device), in bfloat16, one
image to a pass. Bytes are those of weights, optimizer, average, teacher and of the tensors that a pass makes, counted
by running it on tensors without data; a kernel's own workspace and what an allocator wastes are not in them, so 5 % of
a device stay free.

Time is the counted operations over the speed below: a share of the peak that the maker states, of bfloat16 or, for
gradient flow, of float32. Copies between CPU and device, reading of data and exchange between devices are not in it.
`benchmarks/gpu.py` measures that share on a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffusers
import torch
from torch import nn

import secateur
from bench import RESULTS, read_json, write_json, write_text

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
DIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "num_layers": 28,
    "out_channels": 8,
    "sample_size": 32,
}
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


@dataclass(frozen=True)
class Device:
    """Bytes of each device, how many there are, and operations a second of each at its peaks of bfloat16 and of float32
    without TF32."""

    bytes: float
    count: int
    peak: float
    single: float


DEVICES = {
    "24 GB": Device(24e9, 1, 165e12, 82.6e12),  # GeForce RTX 4090
    "80 GB": Device(80e9, 1, 312e12, 19.5e12),  # A100
    "8 x 80 GB": Device(80e9, 8, 312e12, 19.5e12),
}
ALLOCATED = 0.95  # share of a device's memory
USED, USED_BY_REFIT = 0.4, 0.05  # share of a peak that passes reach; of bfloat16, float32 sums with float64 solves
IN_SINGLE = "rank by gradient flow"  # the stage whose passes are in float32
TARGET = "macs=70%"
STEPS, BATCH = 1000, 64  # of the recovery whose time is given

PLAIN = secateur.RecoveryConfig(batch_size=1, objective="distillation", mixed_precision="bf16")
BITS8, LORA = "8-bit", "LoRA 16"
OPTIMIZERS = {
    "AdamW": PLAIN,
    BITS8: replace(PLAIN, optimizer="adamw8bit"),
    LORA: replace(PLAIN, lora=secateur.LoraConfig(16)),
}
WAYS: dict[str, dict[str, Any]] = {  # in order of growing time and change of the result
    "fits": {},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing, offload": {"gradient_checkpointing": True, "offload": ("ema", "teacher")},
    "checkpointing, offload, bf16 weights": {
        "gradient_checkpointing": True,
        "offload": ("ema", "teacher"),
        "weight_precision": "bf16",
    },
}
SHARDED: dict[str, dict[str, Any]] = {
    "fsdp": {"parallel": "fsdp", "batch_size": 8},
    "fsdp, checkpointing": {"parallel": "fsdp", "batch_size": 8, "gradient_checkpointing": True},
}
RECORD, SAMPLE = "record the book", "draw 1000 samples, 50 steps"  # both are forward passes, shared out
TUPLES = STEPS * BATCH // 4 + 128  # of the book of that recovery (docs/teachers-book.md)
CALLS = 1000 * 50  # of the dense model for the samples
RECOMPUTING = "DiT-XL/2, 256 px"  # the model of the second table
RECOMPUTED = 4 / 3  # passes with checkpointing over those without
ONE = secateur.ScoringConfig(num_images=1, batch_size=1)
RANKINGS: dict[str, tuple[str, dict[str, secateur.ScoringConfig]]] = {
    "rank by taylor": (
        "taylor",
        {
            "fits": ONE,
            "abs-then-sum": replace(ONE, options=secateur.TaylorOptions("abs-then-sum")),
        },
    ),
    IN_SINGLE: (
        "gradient-flow",
        {
            "fits": ONE,
            "finite differences": replace(
                ONE, options=secateur.GradientFlowOptions(hessian_product="finite-difference")
            ),
            "streamed": replace(ONE, options=secateur.GradientFlowOptions(hessian_product="streamed")),
        },
    ),
}
RECOVERY_BY_BOOK = "recover by book, AdamW"


def count(name: str, entry: dict[str, Any], keep: Callable[[], None]) -> None:
    """Fill `entry` with bytes of each stage by its ways, and operations of each stage, of the model `name`.

    What is there already is not counted again; `keep` is called after each part.
    """
    build, process = LARGE[name]
    with torch.device("meta"):
        model = build().to(torch.bfloat16)
    entry["weights"] = 2.0 * sum(parameter.numel() for parameter in model.parameters())
    stages: dict[str, dict[str, float]] = entry.setdefault("stages", {})

    def part(stage: str, ways: Mapping[str, Any], bytes_of: Callable[[Any], float]) -> None:
        counted = stages.setdefault(stage, {})
        for way in [each for each in ways if each not in counted]:
            begun = time.perf_counter()
            counted[way] = bytes_of(ways[way])
            keep()
            print(name, stage, way, f"{counted[way] / 1e9:.1f} GB, {time.perf_counter() - begun:.0f} s", flush=True)

    def ranked(criterion: str, scoring: secateur.ScoringConfig) -> float:
        memory = secateur.ranking_memory(model, process, criterion, scoring)
        assert memory is not None
        return float(memory.peak)

    def recovered(config: secateur.RecoveryConfig, by_book: bool, changes: dict[str, Any]) -> float:
        processes = 8 if "parallel" in changes else 1
        asked, device = replace(config, **changes), torch.device("cpu")
        return float(secateur.recovery_memory(model, model, process, asked, device, processes, by_book).total)

    for stage, (criterion, scorings) in RANKINGS.items():
        part(stage, scorings, partial(ranked, criterion))
    for optimizer, config in OPTIMIZERS.items():
        part(f"recover, {optimizer}", WAYS if optimizer == BITS8 else WAYS | SHARDED, partial(recovered, config, False))
    part(RECOVERY_BY_BOOK, WAYS | SHARDED, partial(recovered, PLAIN, True))
    if "flops" not in entry:
        training = replace(PLAIN, steps=STEPS, batch_size=BATCH, accumulation=BATCH)
        given = {"target": TARGET, "process": process, "recovery": training, "compensates": False}
        fresh = secateur.plan(model, **given, criterion="gradient-flow")
        given |= {"compensates": True, "compensation": secateur.CompensationConfig(batch_size=1), "records": True}
        by_book = secateur.plan(model, **given, criterion="taylor", book=secateur.BookConfig(batch_size=1))
        assert by_book.compensation is not None
        whole = by_book.peak["compensate"]
        stages["compensate"] = {"fits": whole, "offload": whole - by_book.compensation.waiting_bytes}
        stages[RECORD] = {"fits": by_book.peak["record"]}
        entry["flops"] = {
            "rank by taylor": by_book.flops["rank"],
            "rank by gradient flow": fresh.flops["rank"],
            "compensate": by_book.flops["compensate"],
            RECORD: by_book.flops["record"],
            **{f"recover, {optimizer}": fresh.flops["recover"] for optimizer in OPTIMIZERS},
            RECOVERY_BY_BOOK: by_book.flops["recover"],
        }
        keep()


def cell(stage: str, ways: dict[str, float], flops: float | None, device: Device) -> str:
    """The first way that fits on the device, with its peak and time, where that was counted; or what is missing."""
    parallel = device.count > 1 and any(way in SHARDED for way in ways)
    names = [way for way in ways if (way in SHARDED) == parallel]
    name = next((way for way in names if ways[way] <= ALLOCATED * device.bytes), None)
    if name is None:
        return f"needs {min(ways[way] for way in names) / 1e9:.0f} GB"
    if flops is None:
        return f"{name}: {ways[name] / 1e9:.1f} GB"
    shared = device.count if parallel or stage in (RECORD, SAMPLE) else 1
    slower = RECOMPUTED if "checkpointing" in name or name == "streamed" else 1.0
    used = USED_BY_REFIT if stage == "compensate" else USED
    peak = device.single if stage == IN_SINGLE else device.peak
    hours = slower * flops / (used * peak * shared) / 3600
    return f"{name}: {ways[name] / 1e9:.1f} GB, {duration(hours)}"


def duration(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1.5 else f"{60 * hours:.0f} min" if hours >= 1 / 40 else f"{3600 * hours:.0f} s"


def table(found: dict[str, dict[str, Any]]) -> str:
    """For each model a table: rows of stages, columns of devices."""
    lines = ["Predicted, not measured: `python benchmarks/memory_table.py`."]
    for name, entry in found.items():
        lines += ["", f"**{name}**", ""]
        lines += ["| stage | plain, GB | " + " | ".join(DEVICES) + " |", "|---|--:|" + "---|" * len(DEVICES)]
        stages, flops = dict(entry["stages"]), dict(entry.get("flops", {}))
        if RECORD in stages:
            stages[SAMPLE], flops[SAMPLE] = stages[RECORD], flops[RECORD] * CALLS / TUPLES
        for stage, ways in stages.items():
            cells = [cell(stage, ways, flops.get(stage), device) for device in DEVICES.values()]
            lines.append(f"| {stage} | {ways['fits'] / 1e9:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def checkpointing() -> dict[str, tuple[float, float]]:
    """GB of gradients and passes of a micro-batch of four of DiT-XL/2, without and with checkpointing, by objective."""
    build, process = LARGE[RECOMPUTING]
    with torch.device("meta"):
        model = build()
    found = {}
    for objective in ("denoising", "features", "first-order", "2ndmatch"):
        kept, saved = (
            secateur.recovery_memory(
                model, model, process, replace(PLAIN, batch_size=4, objective=objective, gradient_checkpointing=saves)
            ).passes
            for saves in (False, True)
        )
        found[objective] = (kept / 1e9, saved / 1e9)
        print("checkpointing", objective, found[objective], flush=True)
    return found


def checkpointing_table(found: dict[str, tuple[float, float]]) -> str:
    lines = ["| gradients and passes of DiT-XL/2, batch 4, GB | kept | recomputed |", "|---|--:|--:|"]
    return "\n".join([*lines, *(f"| {name} | {kept:.1f} | {saved:.1f} |" for name, (kept, saved) in found.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(LARGE), choices=list(LARGE))
    parser.add_argument("--table", action="store_true", help="write the tables again, from the results kept")
    asked = parser.parse_args()
    path = RESULTS / "memory_table.json"
    kept: dict[str, Any] = read_json(path) if path.exists() else {"models": {}, "checkpointing": {}}
    for name in [] if asked.table else asked.models:
        count(name, kept["models"].setdefault(name, {}), lambda: write_json(path, kept))
    if not asked.table and RECOMPUTING in asked.models and not kept["checkpointing"]:
        kept["checkpointing"] = checkpointing()
        write_json(path, kept)
    text = table({name: kept["models"][name] for name in LARGE if name in kept["models"]})
    if kept["checkpointing"]:
        text += f"\n{checkpointing_table(kept['checkpointing'])}\n"
    write_text(RESULTS / "memory_table.md", text)
    print(text)


if __name__ == "__main__":
    main()
