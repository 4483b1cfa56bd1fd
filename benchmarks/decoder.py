"""The decoder of a small VAE of the digits, cut to half of its MACs by several criteria and recovered by several
objectives.

python benchmarks/decoder.py [--steps 200] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from bench import RESULTS, write_json, write_text

SIZE, TRAINING, DENSE_STEPS, KL = 16, 1397, 600, 1e-4
CRITERIA: tuple[str, ...] = ("random", "magnitude", "taylor", "gradient-flow")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "denoising (the image)": {"objective": "denoising"},
    "distillation (the dense decoder's output)": {"objective": "distillation", "weights": {"denoising": 0.0}},
    "both": {"objective": "distillation"},
}
RECOVERY = secateur.RecoveryConfig(
    batch_size=32, learning_rate=1e-3, lr_schedule="cosine", warmup_steps=20, checkpoint_every=100_000, log_every=50
)
COLUMNS = ("psnr", "ssim", "image_psnr", "image_ssim")


def train(images: Tensor, steps: int) -> AutoencoderKL:
    """The dense autoencoder, trained by squared error and a small KL term; the same weights on the same machine."""
    torch.manual_seed(0)
    model: Any = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, sample_size=SIZE, block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        sample = images[torch.randint(len(images), (64,))]
        posterior = model.encode(sample).latent_dist
        error = F.mse_loss(model.decode(posterior.sample()).sample, sample)
        (error + KL * posterior.kl().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(f"dense autoencoder, step {step}: error {error.item():.4f}", flush=True)
    return model.eval()


def cut(dense: AutoencoderKL, images: Tensor, criterion: str, seed: int) -> nn.Module:
    """A copy of the dense decoder at half of its MACs."""
    scoring = secateur.ScoringConfig(num_images=128, seed=seed)
    options: dict[str, Any] = {"criterion": criterion, "scoring": scoring, "cut": secateur.CutConfig(round_to=1)}
    return secateur.prune(dense, target="macs=50%", data=images, **options)


def measured(dense: AutoencoderKL, model: nn.Module, unseen: Tensor, seed: int) -> dict[str, float]:
    """PSNR and SSIM to the dense decoder's images and to the real ones, over images that were not trained on."""
    config = secateur.EvaluationConfig(metrics=("consistency",), num_images=len(unseen), seed=seed)
    reference = None if model is dense else dense
    result = secateur.evaluate(model, reference=reference, data=unseen, evaluation=config)
    return {key: result[key].value for key in COLUMNS if key in result.final.estimates}


def row(name: str, runs: list[dict[str, float]]) -> str:
    """Mean and standard deviation over the seeds."""
    cells = []
    for key in COLUMNS:
        values = [run[key] for run in runs]
        digits = 2 if key.endswith("psnr") else 4
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.{digits}f}{spread}")
    return f"| {name} | {' | '.join(cells)} |"


def write(results: dict[str, Any]) -> None:
    """`decoder.json` and the same as a table, after every seed."""
    write_json(RESULTS / "decoder.json", results)
    own = results["dense"]
    lines = ["| model | PSNR to dense (dB) | SSIM to dense | PSNR to the image (dB) | SSIM to the image |"]
    lines += ["|---|--:|--:|--:|--:|", f"| dense | – | – | {own['image_psnr']:.2f} | {own['image_ssim']:.4f} |"]
    lines += [row(name, found) for name, found in results["runs"].items()]
    write_text(RESULTS / "decoder.md", "\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--dense-steps", type=int, default=DENSE_STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    digits: Any = secateur.load_data("digits", (1, SIZE, SIZE))
    images = digits.batch(range(len(digits))).sample
    seen, unseen = images[:TRAINING], images[TRAINING:]
    dense = train(seen, arguments.dense_steps)
    own = measured(dense, dense, unseen, 0)
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        start = {name: cut(dense, seen, name, seed) for name in CRITERIA}
        for criterion, model in start.items():
            runs.setdefault(f"cut by {criterion}", []).append(measured(dense, model, unseen, seed))
        for name, options in OBJECTIVES.items():
            chosen = replace(RECOVERY, steps=arguments.steps, seed=seed, **options)
            student = secateur.finetune(start["taylor"], data=seen, teacher=dense, recovery=chosen)
            runs.setdefault(f"taylor, {arguments.steps} steps of {name}", []).append(
                measured(dense, student, unseen, seed)
            )
        write({"steps": arguments.steps, "seeds": arguments.seeds, "dense": own, "runs": runs})


if __name__ == "__main__":
    main()
