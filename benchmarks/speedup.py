"""Measured speed-up divided by the reduction of MACs; dense and pruned model are timed in turns.

    python benchmarks/speedup.py
    python benchmarks/speedup.py --models dit-s-2 --target blocks=6 --round-to 8 --name speedup-depth

A U-Net of the DDPM CIFAR-10 shape and a DiT-S/2 transformer with random weights are cut to 56 % of their MACs, or to
fewer blocks; batch 1 and 32, float32 and bfloat16. A ratio of 1 means that the time fell as much as the MACs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal

import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from diffusers.utils import logging

import secateur
from bench import RESULTS, write_json, write_text


def cifar10_unet() -> UNet2DModel:
    """The shape of google/ddpm-cifar10-32."""
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        norm_eps=1e-6,
    )


def dit_s() -> DiTTransformer2DModel:
    """DiT-S/2 at 256 px (Peebles & Xie 2023, table 1)."""
    return DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=64, num_layers=12, sample_size=32)


DTYPES: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
MODELS: dict[str, Callable[[], Any]] = {"unet-cifar10": cifar10_unet, "dit-s-2": dit_s}


def measure(name: str, target: str, round_to: int, rounds: int, batches: tuple[int, ...]) -> list[dict[str, object]]:
    """One row per batch size and dtype."""
    torch.manual_seed(0)
    dense = MODELS[name]().eval()
    options: dict[str, Any] = {"criterion": "magnitude", "process": "ddpm"}
    pruned = secateur.prune(dense, target=target, cut=secateur.CutConfig(round_to=round_to), **options)
    channels, size = int(dense.config["in_channels"]), int(dense.config["sample_size"])
    data = [{"images": torch.zeros(2, channels, size, size), "labels": torch.zeros(2, dtype=torch.int64)}]
    rows: list[dict[str, object]] = []
    for dtype in DTYPES:
        latency = secateur.LatencyOptions(rounds=rounds, batch_sizes=batches, dtype=dtype)
        config = secateur.EvaluationConfig(metrics=("latency",), num_images=2, latency=latency)
        result = secateur.evaluate(pruned, reference=dense, data=data, process="ddpm", evaluation=config)
        ratio = 1 / result.macs.ratio
        for batch in map(str, batches):
            times = [model.latency[batch].median_ms for model in (result.dense, result.final)]
            speedup = times[0] / times[1]
            rows.append(
                {
                    "model": name,
                    "round_to": round_to,
                    "dtype": dtype,
                    "batch": int(batch),
                    "dense_ms": round(times[0], 1),
                    "pruned_ms": round(times[1], 1),
                    "macs_ratio": round(ratio, 3),
                    "speedup": round(speedup, 3),
                    "efficiency": round(speedup / ratio, 3),
                }
            )
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", default="macs=56%")
    parser.add_argument("--round-to", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--name", default="speedup", help="of the files under benchmarks/results")
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # diffusers warns about every cast
    rows = [
        row
        for name in arguments.models
        for round_to in arguments.round_to
        for row in measure(name, arguments.target, round_to, arguments.rounds, tuple(arguments.batches))
    ]
    about = {"torch": torch.__version__, "threads": torch.get_num_threads(), "target": arguments.target}
    write_json(RESULTS / f"{arguments.name}.json", {"environment": about, "rounds": arguments.rounds, "rows": rows})
    header = list(rows[0])
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(row[key]) for key in header) + " |" for row in rows]
    write_text(RESULTS / f"{arguments.name}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
