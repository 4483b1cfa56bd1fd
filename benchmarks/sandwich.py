"""What a refit repairs in a transformer that normalizes what its blocks add (Lumina-Image 2.0, Z-Image).

    python benchmarks/sandwich.py

A small Lumina-Image 2.0 is trained on the digits in memory, with a class for a caption of one token. Then width is cut
by Diff-Pruning and depth by `replacement`, and each cut is refitted to the stream, and to the outputs of its own
layers. The network is trained once and kept in `runs/`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Transformer2DModel
from torch import nn
from torch.nn.functional import one_hot

import secateur
from bench import RESULTS, Results, write_text
from secateur import CompensationConfig, EvaluationConfig, RecoveryConfig, ScoringConfig

STEPS = 6000
CLASSES = 10
TARGETS = {"macs=50%": "diff-pruning", "macs=30%": "diff-pruning", "blocks=5": "replacement", "blocks=3": "replacement"}
EVALUATION = EvaluationConfig(num_images=500, num_inference_steps=20, batch_size=100, metrics=("consistency", "loss"))
PROCESS = FlowMatchEulerDiscreteScheduler()


def network() -> nn.Module:
    """1.8M parameters; 9 blocks."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_layers": 8, "num_refiner_layers": 1, "multiple_of": 16, "cap_feat_dim": CLASSES}
    heads = {"num_attention_heads": 6, "num_kv_heads": 3, "axes_dim_rope": (4, 6, 6), "axes_lens": (30, 16, 16)}
    return Lumina2Transformer2DModel(sample_size=8, patch_size=2, in_channels=1, **sizes, **heads)


def examples() -> list[dict[str, torch.Tensor]]:
    """The digits as latents in [-1, 1], and their classes as captions of one token."""
    digits = secateur.load_data("digits")
    batch = digits.batch(range(len(digits)))
    captions = one_hot(batch.conditions["class_labels"], CLASSES).float()[:, None]
    mask = torch.ones(1, dtype=torch.long)
    return [
        {"latents": latents, "encoder_hidden_states": caption, "encoder_attention_mask": mask}
        for latents, caption in zip(batch.sample, captions, strict=True)
    ]


def trained(runs: Path, steps: int) -> nn.Module:
    """The dense network; a stopped training continues."""
    recovery = RecoveryConfig(
        steps=steps, batch_size=64, learning_rate=1e-3, lr_schedule="cosine", warmup_steps=100, checkpoint_every=500
    )
    about: dict[str, Any] = {"data": examples(), "process": PROCESS, "device": "cpu"}
    return secateur.finetune(network(), **about, recovery=recovery, out=runs / f"sandwich-{steps}")


def measured(model: nn.Module, dense: nn.Module, runs: Path) -> dict[str, float]:
    about: dict[str, Any] = {"data": examples(), "process": PROCESS, "device": "cpu"}
    found = secateur.evaluate(model, reference=dense, **about, evaluation=EVALUATION, cache=runs / "samples").final
    return {name: found[name].value for name in ("denoising_loss", "ssim")}


def run(runs: Path, steps: int) -> Results:
    results = Results(RESULTS / "sandwich.json")
    dense = trained(runs, steps)
    about: dict[str, Any] = {"data": examples(), "process": PROCESS}
    results.once("dense", lambda: measured(dense, dense, runs))
    for target, criterion in TARGETS.items():
        scoring = ScoringConfig(num_timesteps=20, num_images=64)
        pruned = secateur.prune(dense, target=target, criterion=criterion, scoring=scoring, device="cpu", **about)
        results.once(f"{target}/cut", lambda: measured(pruned, dense, runs))  # noqa: B023
        for aim in ("output", "stream"):

            def refitted(aim: str = aim, pruned: nn.Module = pruned) -> dict[str, float]:
                begun = time.process_time()
                model = secateur.compensate(pruned, dense, compensation=CompensationConfig(target=aim), **about)
                return {"cpu_seconds": time.process_time() - begun} | measured(model, dense, runs)

            results.once(f"{target}/{aim}", refitted)
    return results


def table(records: dict[str, Any]) -> list[str]:
    """Markdown: a row for every target and refit."""
    dense = records["dense"]["denoising_loss"]
    rows = [f"| | dense | 1 | {dense:.4f} | |"]
    for key, one in records.items():
        target, _, aim = key.partition("/")
        if aim:
            said = {"cut": "cut", "output": "refitted to outputs", "stream": "refitted to the stream"}[aim]
            took = f"{one['cpu_seconds']:.1f}" if "cpu_seconds" in one else ""
            rows.append(f"| {target} | {said} | {one['ssim']:.3f} | {one['denoising_loss']:.4f} | {took} |")
    head = "| target | model | SSIM to dense | denoising loss | seconds of CPU |"
    return [head, "|---|---|--:|--:|--:|", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the trained network is kept")
    parser.add_argument("--steps", type=int, default=STEPS, help="of its training")
    arguments = parser.parse_args()
    rows = table(run(arguments.runs, arguments.steps).records)
    write_text(RESULTS / "sandwich.md", "\n".join(rows) + "\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
