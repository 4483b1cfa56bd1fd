"""The streaming pass over images: draw a chunk, compute its features, compare it with the reference's, discard it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.fingerprint import fingerprint, model_fingerprint, tensors_fingerprint
from ..base.rows import Chunk, Rows, rows_at
from ..base.seeds import VERSION, Purpose, normal
from ..data import calibration_order, pixels
from ..data.clips import side_by_side
from ..data.conditions import has_conditions, images_of, null_conditions, sample_captions, sample_conditions
from ..models.network import device_of, inference, input_shape
from ..models.predict import predict
from ..process.flow import other_expert
from ..process.reconstruction import AT_ONCE, Reconstruction
from ..process.sampling import generate_batch
from .measurement import CaptionScore, OfCaptions, OfPairs, PairDistance, Subject
from .networks import network_fingerprint
from .plan import Plan

IMAGES_SHOWN = 64
# The settings that a row depends on.
DRAWN_BY = (
    *("num_images", "num_pairs", "num_inference_steps", "guidance_scale", "guidance_channels", "scheduler"),
    *("batch_size", "seed"),
)


@dataclass(frozen=True)
class Instruments:
    """The functions that measure single images, by the keys of their rows."""

    pairs: Mapping[str, PairDistance]
    captions: Mapping[str, CaptionScore]


def instruments_of(plan: Plan) -> Instruments:
    """The functions of the planned metrics."""
    pairs: dict[str, PairDistance] = {}
    captions: dict[str, CaptionScore] = {}
    for metric in plan.of(OfPairs):
        pairs |= metric.load(plan.subject)
    for scored in plan.of(OfCaptions):
        captions |= scored.load(plan.subject)
    return Instruments(pairs, captions)


def sample_rows(plan: Plan, folder: Path | None) -> dict[str, Rows]:
    """Draw and measure the samples of every model, this process's part of them.

    A row of an image holds `finite` and, as needed, `features` and metrics of captions. The first `num_pairs` have the
    metrics of pairs, except for the reference. `images` are kept for the first 64, and for the reference for all pairs.
    The samples of a decoder are reconstructions, whose metrics of pairs with the images themselves are named `image_`
    and the metric.
    """
    subject, instruments = plan.subject, instruments_of(plan)
    config = subject.config
    pairs = min(config.num_pairs, config.num_images) if instruments.pairs else 0
    common = _made_by(subject, instruments)
    found: dict[str, Rows] = {}
    reference: Rows | None = None
    reference_key: str | None = None
    for name, model in subject.models.items():
        key = fingerprint([common, model_fingerprint(model, subject.process), reference_key])
        rows = rows_at(folder and folder / key, config.num_images, config.batch_size)
        kept = IMAGES_SHOWN if reference is not None else max(IMAGES_SHOWN, pairs)
        measure = _measured(subject, model, instruments, reference, pairs, kept)
        rows.fill(torch.no_grad()(measure), f"sampling {name}")
        found[name] = rows
        if reference is None:
            reference, reference_key = rows, key
    return found


def _measured(
    subject: Subject, model: nn.Module, instruments: Instruments, reference: Rows | None, pairs: int, kept: int
) -> Callable[[range], Chunk]:
    """A function from image numbers to the rows of a model."""

    def measure(indices: range) -> Chunk:
        images, originals = images_by(model, subject, indices)
        chunk = {"finite": images.flatten(1).isfinite().all(1), "images": images[: max(0, kept - indices.start)]}
        if subject.network is not None:
            chunk["features"] = subject.network(images)
        if originals is not None:
            chunk |= {f"image_{name}": metric(images, originals) for name, metric in instruments.pairs.items()}
        if instruments.captions:
            captions = sample_captions(subject.dataset, indices, subject.config.seed)
            chunk |= {name: metric(images, captions) for name, metric in instruments.captions.items()}
        if reference is not None and pairs > indices.start:
            theirs = reference.chunk(indices)["images"].to(images.device)
            count = min(len(images), pairs - indices.start)
            chunk |= {name: metric(images[:count], theirs[:count]) for name, metric in instruments.pairs.items()}
        return chunk

    return measure


def images_by(model: nn.Module, subject: Subject, indices: range) -> tuple[Tensor, Tensor | None]:
    """Images (B, C, H, W) in [-1, 1] with these numbers and, for a decoder, the images that it reconstructs, on the
    model's device.

    Image i depends on the seed and i alone. The frames of a clip stand side by side.
    """
    if isinstance(subject.process, Reconstruction):
        return _reconstructed(model, subject.process, subject, indices)
    config = subject.config
    images = generate_batch(
        model,
        subject.process,
        indices,
        input_shape(model),
        sample_conditions(model, subject.dataset, indices, config.seed),
        seed=config.seed,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        guidance_channels=config.guidance_channels,
        null=null_conditions(model, subject.dataset),
        scheduler=config.scheduler,
        decode=subject.decode,
    )
    return side_by_side(images), None


def _reconstructed(
    model: nn.Module, process: Reconstruction, subject: Subject, indices: range
) -> tuple[Tensor, Tensor]:
    """Reconstructions of images of the data, from the same draws of the posterior for every model; and the images."""
    dataset, config, device = subject.dataset, subject.config, device_of(model)
    originals = dataset.batch(images_of(dataset, indices, config.seed)).sample.to(device)
    noise = normal(dataset.shape, indices, config.seed, Purpose.POSTERIOR).to(device)
    timesteps = process.timesteps(torch.zeros(len(originals), device=device))
    with inference(model):
        latents = process.add_noise(originals, noise, timesteps)
        pairs = zip(latents.split(AT_ONCE), timesteps.split(AT_ONCE), strict=True)
        return torch.cat([predict(model, z, t) for z, t in pairs]).clamp(-1, 1), originals


@torch.no_grad()
def _made_by(subject: Subject, instruments: Instruments) -> list[Any]:
    """Everything that the rows of every model depend on, as plain JSON values."""
    config, dataset = subject.config, subject.dataset
    about: list[Any] = [VERSION, dataset.shape, [getattr(config, name) for name in DRAWN_BY]]
    about.append(None if subject.network is None else network_fingerprint(subject.network))
    about += [sorted([*instruments.pairs, *instruments.captions]), config.clip.model if instruments.captions else None]
    if subject.decode is not None:
        zeros = torch.zeros(1, *input_shape(subject.dense), device=subject.device)
        about.append(subject.decode(zeros).cpu().double().sum().item())
    if (expert := other_expert(subject.process)) is not None:
        about.append(tensors_fingerprint(expert.state_dict()))
    if has_conditions(dataset) or subject.reconstructs:  # otherwise samples do not depend on the data
        about.append(dataset.fingerprint)
    return about


def shown_images(rows: Rows) -> Tensor:
    """The first 64 images of a model, (64, C, H, W), or all if there are fewer."""
    ranges = [indices for indices in rows.ranges() if indices.start < IMAGES_SHOWN]
    return torch.cat([rows.chunk(indices)["images"] for indices in ranges])[:IMAGES_SHOWN]


def real_rows(subject: Subject, folder: Path | None) -> Rows:
    """Compute `features`, and `labels` if there are any, of the data's images: all, or as many as asked for."""
    dataset, config, network = pixels(subject.dataset), subject.config, subject.network
    assert network is not None
    order = calibration_order(dataset, config.seed)[: config.num_real_images]
    about = [dataset.fingerprint, network_fingerprint(network)]
    key = fingerprint([*about, config.seed, config.num_real_images, config.batch_size])
    rows = rows_at(folder and folder / key, len(order), config.batch_size)

    @torch.no_grad()
    def measure(indices: range) -> Chunk:
        batch = dataset.batch(order[indices.start : indices.stop].tolist())
        chunk = {"features": network(side_by_side(batch.sample).to(subject.device))}
        return chunk if batch.class_labels is None else chunk | {"labels": batch.class_labels}

    rows.fill(measure, f"features of {dataset.name}")
    return rows
