"""A quick measure of how close a candidate is to the dense model, for quality targets such as `ssim=0.95`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base.errors import require
from ..data import ImageDataset
from ..process.base import Process
from .config import EvaluationConfig
from .measurement import Subject
from .metrics.consistency import ssim
from .metrics.loss import denoising_errors, loss_batch
from .plan import makes_images
from .samples import images_by

QUICK = EvaluationConfig(num_images=32, num_inference_steps=20, batch_size=32)


@dataclass(frozen=True)
class Quality:
    """Mean SSIM of a candidate's samples to the dense model's from the same noise, and its mean loss."""

    ssim: float
    loss: float


def quality_of(
    dense: nn.Module,
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig = QUICK,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[nn.Module], Quality]:
    """A function from a candidate to its quality on `config.num_images` noises and images.

    The dense model's samples are drawn once, here. Each candidate draws as many, and its loss is measured on as many
    images at ten timesteps. The result is deterministic.

    Raises:
        SecateurError: the process draws no samples.
    """
    subject = Subject({"dense": dense}, process, dataset, config, decode)
    require(makes_images(subject), f"{type(dense).__name__} draws no samples here, so there is no SSIM to aim at")
    ranges = torch.arange(config.num_images).split(config.batch_size)
    parts = [range(int(part[0]), int(part[-1]) + 1) for part in ranges]
    references = [_images(dense, subject, part) for part in parts]
    batch = loss_batch(dense, dataset, config.seed, config.num_images)

    def measure(model: nn.Module) -> Quality:
        pairs = zip(parts, references, strict=True)
        similar = [ssim(_images(model, subject, part), reference) for part, reference in pairs]
        _, errors = denoising_errors(model, process, batch, seed=config.seed, batch_size=config.batch_size)
        return Quality(float(torch.cat(similar).mean()), float(errors.mean()))

    return measure


def _images(model: nn.Module, subject: Subject, numbers: range) -> Tensor:
    return images_by(model, subject, numbers)[0].cpu()
