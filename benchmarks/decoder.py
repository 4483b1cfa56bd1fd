"""A small VAE of the digits, its decoder cut to half of its MACs: what ranks it, and what recovers it.

python benchmarks/decoder.py [--steps 200] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.nn import functional as F

from secateur.base.console import progress
from secateur.base.files import write_json, write_text
from secateur.criteria import ScoringConfig, score
from secateur.data import ArrayDataset, calibration_batch, load_data
from secateur.evaluation import EvaluationConfig, evaluate_models
from secateur.io.pipeline import Loaded
from secateur.models.families.autoencoder_kl import AutoencoderKLDecoder
from secateur.models.network import example_inputs
from secateur.models.registry import describe
from secateur.process.reconstruction import reconstruction_by
from secateur.recovery import RecoveryConfig, recover
from secateur.recovery.draws import batch_indices
from secateur.schedules import CutConfig, one_shot, parse_target
from secateur.structure import remove

RESULTS = Path(__file__).resolve().parent / "results"
SIZE, TRAINING, DENSE_STEPS, KL = 16, 1397, 600, 1e-4
CRITERIA: tuple[str, ...] = ("random", "magnitude", "taylor", "gradient-flow")
OBJECTIVES: dict[str, dict[str, Any]] = {
    "denoising (the image)": {"objective": "denoising"},
    "distillation (the dense decoder's output)": {"objective": "distillation", "weights": {"denoising": 0.0}},
    "both": {"objective": "distillation"},
}
RECOVERY = RecoveryConfig(
    batch_size=32, learning_rate=1e-3, lr_schedule="cosine", warmup_steps=20, checkpoint_every=100_000, log_every=50
)
COLUMNS = ("psnr", "ssim", "image_psnr", "image_ssim")


def train(dataset: ArrayDataset) -> AutoencoderKL:
    """The dense autoencoder: squared error and a little KL, the same weights for the same machine."""
    torch.manual_seed(0)
    model: Any = AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, sample_size=SIZE, block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DENSE_STEPS)
    with progress("dense autoencoder", DENSE_STEPS) as advance:
        for step in range(DENSE_STEPS):
            images = dataset.batch(batch_indices(0, step, 64, len(dataset)).tolist()).sample
            posterior = model.encode(images).latent_dist
            error = F.mse_loss(model.decode(posterior.sample()).sample, images)
            (error + KL * posterior.kl().mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            advance(1, f"error {error.item():.4f}")
    return model.eval()


def cut(loaded: Loaded, dataset: ArrayDataset, criterion: str, seed: int) -> nn.Module:
    """A copy of the dense decoder at half of its MACs."""
    structure, config = describe(loaded.model), ScoringConfig(num_images=128, seed=seed)
    batch = calibration_batch(dataset, config.num_images, seed)
    scores = score(loaded.model, loaded.process, batch, structure, criterion, config).scores
    request = (parse_target("macs=50%"), scores, CutConfig(round_to=1), example_inputs(loaded.model, 1))
    return remove(copy.deepcopy(loaded.model), structure, one_shot(loaded.model, structure, *request)[0].cut)


def measured(loaded: Loaded, model: nn.Module, unseen: ArrayDataset, seed: int) -> dict[str, float]:
    """PSNR and SSIM to the dense decoder's images and to the real ones, over images that nothing was trained on."""
    config = EvaluationConfig(metrics=("consistency",), num_images=len(unseen), seed=seed)
    result, _ = evaluate_models({"dense": loaded.model, "model": model}, loaded.process, unseen, config)
    return {key: result[key].value for key in COLUMNS}


def row(name: str, runs: list[dict[str, float]]) -> str:
    """Mean and deviation over the seeds."""
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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    digits: Any = load_data("digits", (1, SIZE, SIZE))
    seen = replace(digits, images=digits.images[:TRAINING], labels=digits.labels[:TRAINING])
    unseen = replace(digits, images=digits.images[TRAINING:], labels=digits.labels[TRAINING:])
    autoencoder = train(seen)
    loaded = Loaded(AutoencoderKLDecoder(autoencoder), reconstruction_by(autoencoder))
    config = EvaluationConfig(metrics=("consistency",), num_images=len(unseen))
    dense = evaluate_models({"dense": loaded.model}, loaded.process, unseen, config)[0].dense
    own = {key: dense[key].value for key in ("image_psnr", "image_ssim")}
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        start = {name: cut(loaded, seen, name, seed) for name in CRITERIA}
        for criterion, model in start.items():
            runs.setdefault(f"cut by {criterion}", []).append(measured(loaded, model, unseen, seed))
        for name, options in OBJECTIVES.items():
            chosen = replace(RECOVERY, steps=arguments.steps, seed=seed, **options)
            with tempfile.TemporaryDirectory() as folder:
                model = copy.deepcopy(start["taylor"])
                student = recover(model, loaded.process, seen, chosen, folder, loaded.model)
            runs.setdefault(f"taylor, {arguments.steps} steps of {name}", []).append(
                measured(loaded, student, unseen, seed)
            )
        write({"steps": arguments.steps, "seeds": arguments.seeds, "dense": own, "runs": runs})


if __name__ == "__main__":
    main()
