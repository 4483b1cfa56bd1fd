"""The streaming pass over images: draw a chunk, take its features, compare it with the reference's, forget it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data import ImageDataset
from ..inputs import input_shape
from ..process import Process
from ..recovery.conditioning import null_conditions, sample_conditions
from ..sampling import generate_batch
from .config import OF_PAIRS, EvaluationConfig
from .consistency import ms_ssim, mse, psnr, ssim
from .features import FeatureNetwork
from .perceptual import load_lpips
from .rows import Chunk, Rows, fingerprint, key_of

IMAGES_SHOWN = 64
# The settings that decide what a row holds.
DRAWN_BY = ("num_images", "num_pairs", "num_inference_steps", "guidance_scale", "scheduler", "batch_size", "seed")
PairMetric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Instruments:
    """What images are measured by."""

    network: FeatureNetwork | None
    pairs: Mapping[str, PairMetric]


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


def sample_rows(
    models: Mapping[str, nn.Module],
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    instruments: Instruments,
    folder: Path,
) -> dict[str, Rows]:
    """Draw and measure the samples of every model, this process's part of them.

    Rows of an image are `finite` and, as far as asked for, `features`; the first `num_pairs` have the metrics of
    `instruments.pairs`, but for the reference, the first model; `images` are kept of the first 64, and of the
    reference for as many as there are pairs.
    """
    settings = {name: getattr(config, name) for name in DRAWN_BY}
    common = [settings, getattr(instruments.network, "name", None), config.features, *sorted(instruments.pairs)]
    pairs = min(config.num_pairs, config.num_images) if OF_PAIRS & set(config.metrics) else 0
    found: dict[str, Rows] = {}
    reference: Rows | None = None
    for name, model in models.items():
        key = key_of(common, fingerprint(model, process), None if reference is None else reference.folder.name)
        rows = Rows(folder / key, config.num_images, config.batch_size)
        shown = IMAGES_SHOWN if reference is not None else max(IMAGES_SHOWN, pairs)
        rows.measure(
            _measurement(model, process, dataset, config, instruments, reference, pairs, shown), f"sampling {name}"
        )
        found[name] = rows
        reference = reference or rows
    return found


def _measurement(
    model: nn.Module,
    process: Process,
    dataset: ImageDataset,
    config: EvaluationConfig,
    instruments: Instruments,
    reference: Rows | None,
    pairs: int,
    shown: int,
) -> Callable[[range], Chunk]:
    """A function from indices to the rows of these samples."""

    @torch.no_grad()
    def measure(indices: range) -> Chunk:
        images = generate_batch(
            model,
            process,
            range(config.seed + indices.start, config.seed + indices.stop),
            input_shape(model),
            sample_conditions(model, dataset, indices, config.seed),
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            null=null_conditions(model, dataset),
            scheduler=config.scheduler,
        )
        chunk: dict[str, Any] = {"finite": images.flatten(1).isfinite().all(1)}
        if shown > indices.start:
            chunk["images"] = images[: shown - indices.start]
        if instruments.network is not None:
            chunk["features"] = instruments.network(images)
        if reference is not None and pairs > indices.start:
            compared = images[: pairs - indices.start]
            others = reference.chunk(indices)["images"][: len(compared)].to(images.device)
            chunk |= {name: metric(compared, others) for name, metric in instruments.pairs.items()}
        return chunk

    return measure


def shown_images(rows: Rows) -> Tensor:
    """The first 64 images of a model, (64, C, H, W), or all if there are fewer."""
    ranges = [indices for indices in rows.ranges() if indices.start < IMAGES_SHOWN]
    return torch.cat([rows.chunk(indices)["images"] for indices in ranges])[:IMAGES_SHOWN]


def real_rows(
    dataset: ImageDataset, network: FeatureNetwork, config: EvaluationConfig, device: torch.device, folder: Path
) -> Rows:
    """Take `features`, and `labels` where there are any, of the data's images: all, or as many as asked for."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed))
    order = order[: config.num_real_images]
    some = dataset.batch(order[:16].tolist()).sample.double()
    about = [dataset.name, len(dataset), dataset.shape, some.sum().item(), some.square().sum().item()]
    key = key_of(about, network.name, config.features, config.seed, config.num_real_images, config.batch_size)
    rows = Rows(folder / key, len(order), config.batch_size)

    @torch.no_grad()
    def measure(indices: range) -> Chunk:
        batch = dataset.batch(order[indices.start : indices.stop].tolist())
        chunk = {"features": network(batch.sample.to(device))}
        return chunk if batch.class_labels is None else chunk | {"labels": batch.class_labels}

    rows.measure(measure, f"features of {dataset.name}")
    return rows
