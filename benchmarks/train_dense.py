"""Train the dense models for tests, the quickstart and the benchmarks, from scratch with a fixed seed, on a CPU.

    python benchmarks/train_dense.py digits-unet digits-sit
    python benchmarks/train_dense.py all --threads 1
    python benchmarks/train_dense.py cifar-unet --further --steps 4000

Interrupted runs resume from their checkpoints, in `--runs`. Models with a constant learning rate are trained in pieces:
`--steps` may be raised later, and where the checkpoints are gone, `--further` starts from the written model.

The digits come with scikit-learn; Fashion-MNIST and CIFAR-10 are read from `$SECATEUR_DATA/fashion_mnist_train.npz` and
`cifar10_train_20k.npz`, which hold `images` and `labels`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import nn
from torch.nn import functional as F

import secateur
from secateur import RecoveryConfig, SecateurError, SmallFeatures, load_data

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "src" / "secateur" / "assets"
MODELS = ROOT / "benchmarks" / "models"


def digits() -> Any:
    return load_data("digits")


def fashion() -> Any:
    """All of Fashion-MNIST at 16x16, from outside of the repository."""
    return outside("fashion_mnist_train.npz", (1, 16, 16))


def cifar() -> Any:
    """20,000 of the training images of CIFAR-10, from outside of the repository."""
    return outside("cifar10_train_20k.npz", (3, 32, 32))


def outside(name: str, shape: tuple[int, int, int]) -> Any:
    """The images of a file in $SECATEUR_DATA."""
    path = Path(os.environ.get("SECATEUR_DATA", "")) / name
    if not path.is_file():
        sys.exit(f"{path} is missing; set SECATEUR_DATA to the folder that holds {name}")
    return load_data(path, shape)


def unet(
    sample_size: int, channels: tuple[int, ...], layers: int, head: int = 16, outer: int = 1, colours: int = 1
) -> UNet2DModel:
    """A DDPM U-Net with attention in all but the `outer` levels; few norm groups allow fine steps of pruning."""
    inner = len(channels) - outer
    return UNet2DModel(
        sample_size=sample_size,
        in_channels=colours,
        out_channels=colours,
        block_out_channels=channels,
        layers_per_block=layers,
        down_block_types=(*["DownBlock2D"] * outer, *["AttnDownBlock2D"] * inner),
        up_block_types=(*["AttnUpBlock2D"] * inner, *["UpBlock2D"] * outer),
        norm_num_groups=4,
        attention_head_dim=head,
    )


def sit(sample_size: int) -> DiTTransformer2DModel:
    """A class-conditional SiT of 12 blocks, initialized by adaLN-Zero (DiT, section 3.2)."""
    model = DiTTransformer2DModel(
        sample_size=sample_size,
        in_channels=1,
        patch_size=2,
        num_layers=12,
        num_attention_heads=4,
        attention_head_dim=24,
        num_embeds_ada_norm=10,
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    for block in model.transformer_blocks:
        for layer in (block.norm1.emb.timestep_embedder.linear_1, block.norm1.emb.timestep_embedder.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(model.proj_out_1.weight)
    nn.init.zeros_(model.proj_out_2.weight)
    return model


DIFFUSION = DDPMScheduler(num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2", clip_sample=True)
FLOW = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000)
CONFIG = RecoveryConfig(
    batch_size=64, learning_rate=1e-3, lr_schedule="cosine", warmup_steps=200, checkpoint_every=500, log_every=50
)
IN_PIECES = replace(CONFIG, lr_schedule="constant", optimizer="muon", ema_decay=0.9995)


@dataclass(frozen=True)
class Dense:
    """One dense model: how to build and train it, and where it is written."""

    build: Callable[[], nn.Module]
    scheduler: DDPMScheduler | FlowMatchEulerDiscreteScheduler
    data: Callable[[], Any]
    folder: Path
    config: RecoveryConfig


DENSE = {
    "digits-unet": Dense(
        lambda: unet(8, (32, 64), 2), DIFFUSION, digits, ASSETS / "digits-unet", replace(CONFIG, steps=6_000)
    ),
    "digits-sit": Dense(lambda: sit(8), FLOW, digits, ASSETS / "digits-sit", replace(CONFIG, steps=5_000)),
    "digits-dit": Dense(lambda: sit(8), DIFFUSION, digits, MODELS / "digits-dit", replace(CONFIG, steps=5_000)),
    "fashion-unet": Dense(
        lambda: unet(16, (64, 64, 64), 1, head=32, outer=2),
        DIFFUSION,
        fashion,
        ASSETS / "fashion-unet",
        replace(CONFIG, steps=5_000, optimizer="muon", ema_decay=0.9995),
    ),
    "fashion-sit": Dense(lambda: sit(16), FLOW, fashion, MODELS / "fashion-sit", replace(IN_PIECES, steps=3_000)),
    # 4.5M parameters and 0.38 GMACs.
    "cifar-unet": Dense(
        lambda: unet(32, (32, 64, 128, 128), 1, head=32, outer=2, colours=3),
        DIFFUSION,
        cifar,
        MODELS / "cifar-unet",
        replace(IN_PIECES, steps=8_000, horizontal_flip=True, mixed_precision="bf16"),
    ),
}
FEATURES = {
    "digits-features": (digits, ASSETS / "digits-features", 3_000),
    "fashion-features": (fashion, ASSETS / "fashion-features", 4_000),
    "cifar-features": (cifar, MODELS / "cifar-features", 2_000),
}


def train_dense(name: str, steps: int | None, runs: Path, further: bool = False) -> Path:
    """Train the model called `name` and write it as a diffusers folder with its scheduler and `training.json`.

    With `further`, starts from the weights that are written there, with other batches and noise than before.
    """
    dense = DENSE[name]
    config = replace(dense.config, steps=steps or dense.config.steps)
    start, before = dense.build, None
    if further:
        before = json.loads((dense.folder / "training.json").read_text())
        config = replace(config, seed=before["config"]["seed"] + 1)
        start = partial(load_float32, dense.folder)
    torch.manual_seed(config.seed)
    run = runs / (f"{name}-{config.seed}" if further else name)
    options: dict[str, Any] = {"data": dense.data(), "process": dense.scheduler, "recovery": config, "out": run}
    trained = secateur.finetune(start(), progress=True, **options)
    model: Any = dense.build()
    model.load_state_dict(trained.state_dict())  # without a manifest, as a dense model
    lines = (run / "recovery" / "log.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines[-20:])]
    model.half().save_pretrained(dense.folder)  # outputs move by less than 1e-3 (tests/test_embedded.py)
    dense.scheduler.save_config(dense.folder)
    about = {
        "steps": config.steps,
        "seconds": json.loads(lines[-1])["seconds"],
        "threads": torch.get_num_threads(),
        "final_loss": sum(losses) / len(losses),
        "config": asdict(config),
        **({"before": before} if before else {}),
    }
    (dense.folder / "training.json").write_text(json.dumps(about, indent=2) + "\n")
    return dense.folder


def load_float32(folder: Path) -> nn.Module:
    return secateur.load(folder, device="cpu", torch_dtype=torch.float32).model


def train_features(name: str, steps: int | None) -> Path:
    """Train a `SmallFeatures` classifier on shifted, noisy images and save it."""
    data, folder, default_steps = FEATURES[name]
    dataset, steps = data(), steps or default_steps
    torch.manual_seed(0)
    network = SmallFeatures(dataset.shape[0], len(dataset.class_names))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    begun, right = time.perf_counter(), 0.0
    for step in range(steps):
        batch = dataset.batch(torch.randint(len(dataset), (128,)).tolist())
        logits = network.logits(augment(batch.sample))
        optimizer.zero_grad()
        F.cross_entropy(logits, batch.class_labels, label_smoothing=0.05).backward()
        optimizer.step()
        schedule.step()
        right = 0.99 * right + 0.01 * (logits.argmax(1) == batch.class_labels).float().mean().item()
        if step % 500 == 0:
            print(f"{name}, step {step}: accuracy {right:.3f}", flush=True)
    network.save(folder)
    about = {"steps": steps, "seconds": round(time.perf_counter() - begun, 1), "train_accuracy": round(right, 4)}
    (folder / "training.json").write_text(json.dumps(about, indent=2) + "\n")
    return folder


def augment(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Each image shifted by at most one pixel, with noise of a random strength up to 0.3."""
    padded = F.pad(images_BCHW, (1, 1, 1, 1), value=-1.0)
    height, width = images_BCHW.shape[2:]
    shifts = torch.randint(0, 3, (len(images_BCHW), 2)).tolist()
    shifted = torch.stack(
        [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, shifts, strict=True)]
    )
    return shifted + 0.3 * torch.rand(len(shifted), 1, 1, 1) * torch.randn_like(shifted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*DENSE, *FEATURES, "all"])
    parser.add_argument("--further", action="store_true", help="start from the model that was written")
    parser.add_argument("--steps", type=int, help="optimizer steps, instead of each model's own")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; more stall when other work shares the cores"
    )
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "dense", help="checkpoints and logs")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        for name in [*FEATURES, *DENSE] if "all" in arguments.names else arguments.names:
            if name in DENSE:
                print(train_dense(name, arguments.steps, arguments.runs, arguments.further))
            else:
                print(train_features(name, arguments.steps))
    except SecateurError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
