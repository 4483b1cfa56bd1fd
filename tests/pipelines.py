"""Tiny random pipelines of latents, complete: VAE, text encoders, tokenizers, schedulers."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from PIL import Image

from models import dit, randomize, unet
from secateur.base.files import read_json, write_json

LINEAR = {"beta_schedule": "scaled_linear", "clip_sample": False}
SMALL = {
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}


def vae(**changes: object) -> AutoencoderKL:
    """Two pixels to a latent, along each side."""
    return randomize(AutoencoderKL(**{"latent_channels": 2, "scaling_factor": 0.5, **SMALL, **changes}))


def deep_compression() -> AutoencoderDC:
    """The autoencoder of Sana: four pixels to a latent, along each side, and no posterior."""
    blocks = {"block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8, 16)}
    blocks |= {"layers_per_block": (1, 1, 1), "qkv_multiscales": ((), (), (5,))}
    sides = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in blocks.items()}
    return randomize(AutoencoderDC(latent_channels=2, attention_head_dim=8, scaling_factor=0.4, **sides))


def dit_pipeline(folder: Path, autoencoder: AutoencoderKL | None = None) -> DiTPipeline:
    """A class-conditional DiT on 8 x 8 latents of 16 x 16 images, saved to `folder`."""
    transformer: DiTTransformer2DModel = dit(in_channels=2, out_channels=4)
    pipeline = DiTPipeline(transformer, autoencoder or vae(), DDIMScheduler(**LINEAR))
    pipeline.save_pretrained(folder)
    index = read_json(folder / "model_index.json")  # DiT-XL on the hub names its classes there
    write_json(folder / "model_index.json", index | {"id2label": {str(i): f"class {i}" for i in range(10)}})
    return pipeline


def ldm_pipeline(folder: Path) -> LDMPipeline:
    """An unconditional U-Net on the latents of a VQ model, as LDM-CelebA is."""
    network: UNet2DModel = unet(in_channels=2, out_channels=2)
    autoencoder = randomize(VQModel(latent_channels=2, num_vq_embeddings=16, scaling_factor=0.5, **SMALL))
    pipeline = LDMPipeline(autoencoder, network, DDIMScheduler(**LINEAR))
    pipeline.save_pretrained(folder)
    return pipeline


def image_folder(folder: Path, count: int = 6, size: int = 16, captions: bool = False, classes: bool = False) -> Path:
    """Random pictures, half of them cats and half dogs, with captions or in sub-folders if asked."""
    generator = np.random.default_rng(0)
    lines = []
    for index in range(count):
        kind = ("cat", "dog")[index % 2]
        name = f"{kind}/{index}.png" if classes else f"{index}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (size, size, 3), dtype=np.uint8)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": f"a {kind}"}))
    if captions:
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def images_of(folder: Path) -> torch.Tensor:
    """The pictures of `image_folder` in the order of their names, in [-1, 1]."""
    paths = sorted(folder.rglob("*.png"))
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 127.5 - 1 for path in paths])
