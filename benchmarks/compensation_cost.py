"""What compensation costs: measured time and memory beside the prediction, on models with random weights.

    OMP_NUM_THREADS=2 python benchmarks/compensation_cost.py
    OMP_NUM_THREADS=2 python benchmarks/compensation_cost.py --models unet-64

Models are cut to 60 % of their MACs and refitted on 96 tuples, SD 1.5's U-Net on 8, with at most 24,576 rows per layer.
Time is that of the whole call of `compensate`. Memory is the peak of the process minus its memory before the call, so
measure one model at a time.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import Tensor

import secateur
from bench import RESULTS, Results, write_text
from sizes import sd15
from speedup import cifar10_unet, dit_s

CONFIG = secateur.CompensationConfig(num_tuples=96, batch_size=16)
FEW = secateur.CompensationConfig(num_tuples=8, batch_size=4)


def unet_64() -> UNet2DModel:
    """63M parameters for colour pictures of 64x64, as the tutorials of diffusers train them."""
    return UNet2DModel(
        sample_size=64,
        block_out_channels=(64, 128, 256, 512),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        norm_num_groups=8,
    )


MODELS: dict[str, Callable[[], Any]] = {
    "digits-unet": lambda: secateur.load("digits-unet", device="cpu").model,
    "unet-cifar10": cifar10_unet,
    "unet-64": unet_64,
    "dit-s-2": dit_s,
    "sd-1.5": sd15,
}


def measure(name: str) -> dict[str, Any]:
    """Time and memory of one compensation, predicted and measured."""
    dense, config = MODELS[name]().eval(), FEW if name == "sd-1.5" else CONFIG
    target, process = "macs=60%", "ddpm"
    recipe = secateur.Recipe(compensates=True, compensation=config)
    planned = secateur.plan(dense, target=target, process=process, recipe=recipe)
    assert planned.compensation is not None
    pruned = secateur.prune(dense, target=target, process=process, criterion="magnitude")
    data = [batch_for(dense, config.num_tuples)]
    held = _most_bytes()
    begun, worked = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"data": data, "process": process, "compensation": config, "out": folder}
        secateur.compensate(pruned, dense, **options)
        found = secateur.read_result(secateur.Compensation, Path(folder) / "compensation.json")
    return {
        "parameters": sum(parameter.numel() for parameter in dense.parameters()),
        "layers": len(found.readers),
        "columns": max(reader.columns for reader in found.readers.values()),
        "seconds": time.monotonic() - begun,
        "cpu_seconds": time.process_time() - worked,
        "predicted_seconds": planned.seconds["compensate"],
        "bytes": _most_bytes() - held,
        "predicted_bytes": planned.compensation.bytes,
        "error": [found.before, found.after],
        "threads": torch.get_num_threads(),
    }


def batch_for(dense: Any, count: int) -> dict[str, Tensor]:
    """As many samples, with labels or the states of a text encoder."""
    generator, size = torch.Generator().manual_seed(0), int(dense.config["sample_size"])
    images = torch.randn(count, int(dense.config["in_channels"]), size, size, generator=generator)
    if isinstance(dense, UNet2DConditionModel):
        states = torch.randn(count, 77, int(dense.config["cross_attention_dim"]), generator=generator)
        return {"latents": images, "encoder_hidden_states": states}
    return {"images": images, "labels": torch.arange(count) % 10}


def _most_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(records: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| model | parameters | layers | columns, at most | seconds | of CPU | predicted | memory, GB | predicted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, one in records.items():
        seconds = f"{one['seconds']:.1f} | {one['cpu_seconds']:.1f} | {one['predicted_seconds']:.1f}"
        memory = f"{one['bytes'] / 1e9:.2f} | {one['predicted_bytes'] / 1e9:.2f}"
        size = f"{one['parameters'] / 1e6:.1f}M | {one['layers']} | {one['columns']}"
        lines.append(f"| {name} | {size} | {seconds} | {memory} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    results = Results(RESULTS / "compensation-cost.json")
    for name in parser.parse_args().models:
        results.once(name, lambda name=name: measure(name))  # type: ignore[misc]
    text = table(results.records)
    write_text(RESULTS / "compensation-cost.md", text)
    print(text)


if __name__ == "__main__":
    main()
