"""The streaming pass over images: draw a chunk, take its features, compare it with the reference's, forget it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.fingerprint import fingerprint, model_fingerprint
from ..base.rows import Chunk, Rows, rows_at
from ..data import ImageDataset
from ..data.conditions import null_conditions, sample_captions, sample_conditions
from ..models.network import device_of, input_shape
from ..process.base import Process
from ..process.reconstruction import Reconstruction
from ..process.sampling import generate_batch
from .config import EvaluationConfig
from .metrics.consistency import ms_ssim, mse, psnr, ssim
from .metrics.perceptual import load_clip, load_lpips
from .networks import FeatureNetwork
from .reconstructions import described, reconstruct

IMAGES_SHOWN = 64
# The settings that decide what a row holds.
DRAWN_BY = ("num_images", "num_pairs", "num_inference_steps", "guidance_scale", "scheduler", "batch_size", "seed")
Decode = Callable[[Tensor], Tensor]
PairMetric = Callable[[Tensor, Tensor], Tensor]
TextMetric = Callable[[Tensor, Sequence[str]], Tensor]


@dataclass(frozen=True)
class Instruments:
    """What images are measured by; `decode` turns the latents of a latent model into images.

    `texts` compare an image with what it was to show.
    """

    network: FeatureNetwork | None
    pairs: Mapping[str, PairMetric]
    decode: Decode | None = None
    texts: Mapping[str, TextMetric] = field(default_factory=dict)

    @torch.no_grad()
    def fingerprint(self, sample_BCHW: Tensor) -> list[Any]:
        """What tells them from others, by what they make of a sample."""
        name = None if self.network is None else self.network.name
        decoded = None if self.decode is None else self.decode(sample_BCHW).cpu().double().sum().item()
        return [name, sorted([*self.pairs, *self.texts]), decoded]


def pair_metrics(config: EvaluationConfig, device: torch.device) -> dict[str, PairMetric]:
    """The metrics of image pairs that `config` asks for.

    Raises:
        ModelError: LPIPS cannot be loaded.
    """
    found: dict[str, PairMetric] = {}
    if "consistency" in config.metrics:
        found |= {"ssim": ssim, "psnr": psnr, "mse": mse}
    if "ms-ssim" in config.metrics:
        found["ms_ssim"] = ms_ssim
    if "lpips" in config.metrics:
        found["lpips"] = load_lpips(device)
    return found


def text_metrics(config: EvaluationConfig, device: torch.device) -> dict[str, TextMetric]:
    """The metrics of an image and its caption that `config` asks for.

    Raises:
        ModelError: CLIP cannot be loaded.
    """
    return {"clip_score": load_clip(config.clip, device)} if "clip" in config.metrics else {}


def sample_rows(
    models: Mapping[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    instruments: Instruments,
    folder: Path | None,
) -> dict[str, Rows]:
    """Draw and measure the samples of every model, this process's part of them.

    Rows of an image are `finite` and, as far as asked for, `features` and the metrics of `instruments.texts`; the first
    `num_pairs` have the metrics of `instruments.pairs`, but for the reference, the first model; `images` are kept of
    the first 64, and of the reference for as many as there are pairs. The samples of a decoder are reconstructions, and
    those of `instruments.pairs` with the images themselves are `image_` and their name.
    """
    pairs = min(config.num_pairs, config.num_images) if instruments.pairs else 0
    settings = [getattr(config, name) for name in DRAWN_BY]
    dense = next(iter(models.values()))
    zeros = torch.zeros(1, *input_shape(dense), device=device_of(dense))
    # What all samples are told may not fit into memory: captions name it, and the first batch what encoded them.
    first = sample_conditions(dense, dataset, range(min(config.batch_size, config.num_images)), config.seed)
    told: list[Any] = [(name, *_sums(value)) for name, value in first.items()]
    chosen = [config.features, *([config.clip] if instruments.texts else [])]
    if isinstance(process, Reconstruction):
        told.append(described(dataset, config))
    common = [settings, *chosen, *instruments.fingerprint(zeros), dataset.captions, told]
    found: dict[str, Rows] = {}
    reference: Rows | None = None
    reference_key: str | None = None
    for name, model in models.items():
        key = fingerprint([common, model_fingerprint(model, process), reference_key])
        rows = rows_at(folder and folder / key, config.num_images, config.batch_size)
        kept = IMAGES_SHOWN if reference is not None else max(IMAGES_SHOWN, pairs)

        def measure(
            indices: range, model: nn.Module = model, reference: Rows | None = reference, kept: int = kept
        ) -> Chunk:
            compared: Chunk = {}
            if isinstance(process, Reconstruction):
                images, originals = reconstruct(model, process, dataset, config, indices)
                compared = {f"image_{name}": metric(images, originals) for name, metric in instruments.pairs.items()}
            else:
                images = _draw(model, process, dataset, config, instruments.decode, indices)
            chunk = _alone(images, instruments.network) | {"images": images[: max(0, kept - indices.start)]} | compared
            if instruments.texts:
                captions = sample_captions(dataset, indices, config.seed)
                chunk |= {name: metric(images, captions) for name, metric in instruments.texts.items()}
            if reference is not None and pairs > indices.start:
                others = reference.chunk(indices)["images"].to(images.device)
                count = min(len(images), pairs - indices.start)
                chunk |= {name: metric(images[:count], others[:count]) for name, metric in instruments.pairs.items()}
            return chunk

        rows.fill(torch.no_grad()(measure), f"sampling {name}")
        found[name] = rows
        if reference is None:
            reference, reference_key = rows, key
    return found


def _sums(value: Tensor) -> tuple[float, float]:
    return value.double().sum().item(), value.double().square().sum().item()


def _draw(
    model: nn.Module,
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    decode: Decode | None,
    indices: range,
) -> Tensor:
    return generate_batch(
        model,
        process,
        range(config.seed + indices.start, config.seed + indices.stop),
        input_shape(model),
        sample_conditions(model, dataset, indices, config.seed),
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        null=null_conditions(model, dataset),
        scheduler=config.scheduler,
        decode=decode,
    )


def _alone(images_BCHW: Tensor, network: FeatureNetwork | None) -> Chunk:
    """What an image says by itself."""
    chunk = {"finite": images_BCHW.flatten(1).isfinite().all(1)}
    return chunk if network is None else chunk | {"features": network(images_BCHW)}


def shown_images(rows: Rows) -> Tensor:
    """The first 64 images of a model, (64, C, H, W), or all if there are fewer."""
    ranges = [indices for indices in rows.ranges() if indices.start < IMAGES_SHOWN]
    return torch.cat([rows.chunk(indices)["images"] for indices in ranges])[:IMAGES_SHOWN]


def real_rows(
    dataset: ImageDataset, network: FeatureNetwork, config: EvaluationConfig, device: torch.device, folder: Path | None
) -> Rows:
    """Take `features`, and `labels` where there are any, of the data's images: all, or as many as asked for."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed))
    order = order[: config.num_real_images]
    some = dataset.batch(order[:16].tolist()).sample.double()
    about = [dataset.name, len(dataset), dataset.shape, some.sum().item(), some.square().sum().item()]
    key = fingerprint([about, network.name, config.features, config.seed, config.num_real_images, config.batch_size])
    rows = rows_at(folder and folder / key, len(order), config.batch_size)

    @torch.no_grad()
    def measure(indices: range) -> Chunk:
        batch = dataset.batch(order[indices.start : indices.stop].tolist())
        chunk = {"features": network(batch.sample.to(device))}
        return chunk if batch.class_labels is None else chunk | {"labels": batch.class_labels}

    rows.fill(measure, f"features of {dataset.name}")
    return rows
