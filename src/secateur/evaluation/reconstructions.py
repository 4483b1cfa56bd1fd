"""What a decoder makes of the latents of the data's images: the samples of its evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data import ImageDataset
from ..data.conditions import images_of
from ..models.network import device_of, inference
from ..models.predict import predict
from ..process.reconstruction import AT_ONCE, Reconstruction
from ..process.sampling import initial_noise
from .config import EvaluationConfig


def reconstruct(
    model: nn.Module, process: Reconstruction, dataset: ImageDataset, config: EvaluationConfig, indices: range
) -> tuple[Tensor, Tensor]:
    """Reconstructions of images of the data, and the images, (B, C, H, W) each in [-1, 1], on the model's device.

    Image i and its draw of the posterior depend on the seed and i alone, so every model sees the same latents.
    """
    device = device_of(model)
    originals = dataset.batch(images_of(dataset, indices, config.seed)).sample.to(device)
    noise = initial_noise([config.seed + index for index in indices], dataset.shape).to(device)
    timesteps = process.timesteps(torch.zeros(len(originals), device=device))
    with inference(model):
        latents = process.add_noise(originals, noise, timesteps)
        pairs = zip(latents.split(AT_ONCE), timesteps.split(AT_ONCE), strict=True)
        return torch.cat([predict(model, z, t) for z, t in pairs]).clamp(-1, 1), originals


def described(dataset: ImageDataset, config: EvaluationConfig) -> list[Any]:
    """What tells the reconstructed images from others, as plain JSON values."""
    first = dataset.batch(images_of(dataset, range(min(config.batch_size, config.num_images)), config.seed)).sample
    return [dataset.name, len(dataset), first.double().sum().item(), first.double().square().sum().item()]
