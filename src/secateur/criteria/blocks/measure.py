"""The effect of dropping each block on the output, measured on the same tuples (image, label, timestep, noise).

Paired inputs remove the variance of the inputs from every comparison. Only sums over each tuple's output are kept, from
which any statistic, for any resample of the images, follows without another pass.

L blocks, T bins of timesteps, N images; B tuples of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.console import progress
from ...base.errors import SecateurError, TrainingError
from ...base.seeds import Purpose, normal, uniform
from ...data import Batch
from ...models.conditions import Conditions, rows
from ...models.network import inference
from ...models.predict import predict
from ...models.registry import describe
from ...process.base import Process, timesteps_at
from ...structure import Block, Structure, pick, returned_tensors, streams_of
from ..criterion import FORWARD_SHARE, Options, Price, ScoringConfig
from .drops import outputs_without_each_block, passes_of

BINS = 8  # of timesteps, by default

Array = NDArray[np.float64]
CedOutput = Literal["sample", "prediction"]


@dataclass(frozen=True)
class Tuples:
    """A micro-batch: `noisy` and `target` (B, C, H, W), `timesteps` (B,) in the network's unit."""

    noisy: Tensor
    target: Tensor
    timesteps: Tensor
    conditions: Conditions


@dataclass(frozen=True)
class BlockSums:
    """Float64 sums over each tuple's C H W outputs; row 0 of `total`, `square` and `loss` is for the full model.

    Attributes:
        names: the L blocks.
        entries: C H W.
        total: sum of the output (the clean sample implied by the network's prediction, or the prediction itself), (L +
            1, T, N).
        square: sum of its squares, (L + 1, T, N).
        size: sum of the squares of the full model's prediction, (T, N).
        loss: mean squared denoising error, (L + 1, T, N).
        change: sum of (prediction without the block - prediction)^2, (L, T, N).
        cosine: 1 - cos(input of the block, its output), mean over tokens, (L, T, N).
    """

    names: tuple[str, ...]
    entries: int
    total: Array
    square: Array
    size: Array
    loss: Array
    change: Array
    cosine: Array

    def output_error(self) -> Array:
        """E|prediction without the block - prediction|^2 / E|prediction|^2 in each bin, (L, T)."""
        return self.change.sum(-1) / _positive(self.size.sum(-1))

    def of_images(self, index: NDArray[np.intp]) -> BlockSums:
        """The sums for the images at these indices, which may repeat."""
        sums: dict[str, Any] = {key: values for key, values in vars(self).items() if isinstance(values, np.ndarray)}
        return replace(self, **{key: values[..., index] for key, values in sums.items()})

    def loss_change(self) -> Array:
        """Denoising loss without the block minus that of the full model in each bin, (L, T)."""
        return (self.loss[1:] - self.loss[0]).mean(-1)


def block_names(structure: Structure) -> tuple[str, ...]:
    """The blocks in the order of the forward pass.

    Raises:
        SecateurError: there is none.
    """
    if not structure.blocks:
        raise SecateurError("the model has no block that could be skipped; use a criterion that ranks widths")
    return tuple(structure.blocks)


def draw_tuples(process: Process, batch: Batch, config: ScoringConfig) -> Iterator[Tuples]:
    """Draw every image once in every bin, starting at the clean end, at a random timestep of the bin with new noise.

    The draws depend on `config.seed` alone, not on how `config.batch_size` splits them.
    """
    images, bins = len(batch.sample), config.timesteps_of(process)
    jitter = uniform(bins * images, config.seed, Purpose.SCORING).double().reshape(bins, images)
    timesteps = timesteps_at(process, ((torch.arange(bins)[:, None] + jitter) / bins).flatten())
    for chunk in torch.arange(bins * images).split(config.batch_size):
        noise = normal(batch.sample.shape[1:], chunk.tolist(), config.seed, Purpose.SCORING, part=1).to(batch.sample)
        index = (chunk % images).to(batch.sample.device)
        sample, at = batch.sample[index], timesteps[chunk].to(batch.sample.device)
        yield Tuples(
            process.add_noise(sample, noise, at),
            process.target(sample, noise, at),
            at,
            rows(batch.conditions, index),
        )


def price_of_tuples(
    model: nn.Module, process: Process, structure: Structure, config: ScoringConfig, options: Options
) -> Price:
    """Price of a forward pass for every tuple."""
    return Price(config.timesteps_of(process) * config.num_images * FORWARD_SHARE)


def price_of_drops(
    model: nn.Module, process: Process, structure: Structure, config: ScoringConfig, options: Options
) -> Price:
    """Price of a forward pass for every tuple, and again without each block of `structure`."""
    passes = passes_of(structure, list(describe(model).blocks))
    return Price(passes * price_of_tuples(model, process, structure, config, options).passes)


def measure_blocks(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    ced_output: CedOutput = "sample",
) -> BlockSums:
    """The sums for the full model and every drop; `ced_output` says of which output `total` and `square` are.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    names, images, bins = block_names(structure), len(batch.sample), config.timesteps_of(process)
    reach = batch.sample.abs().max().cpu().double()
    gathered: list[list[Tensor]] = [[] for _ in range(len(names) + 1)]
    distances: list[Tensor] = []
    with inference(model), progress("blocks dropped", images * bins * len(names)) as advance:
        for tuples in draw_tuples(process, batch, config):

            def call(tuples: Tuples = tuples) -> Tensor:
                return predict(model, tuples.noisy, tuples.timesteps, tuples.conditions).cpu().double()

            def sums(prediction: Tensor, full: Tensor, tuples: Tuples = tuples) -> Tensor:
                target, output = tuples.target.cpu().double(), prediction
                if ced_output == "sample":
                    clean = process.denoised(tuples.noisy.cpu().double(), prediction, tuples.timesteps.cpu())
                    output = clean.clamp(-reach, reach)
                return _sums(output, prediction, full, target)

            with watched(model, structure) as seen:
                full = call()
            distances.append(torch.stack([seen[name] for name in names]))
            gathered[0].append(sums(full, full))
            for row, output in zip(gathered[1:], outputs_without_each_block(model, structure, call), strict=True):
                row.append(sums(output, full))
                advance(len(full), "")
    found = torch.stack([torch.cat(row, dim=1) for row in gathered]).reshape(len(names) + 1, 5, bins, images).numpy()
    finite = np.isfinite(found).all((1, 2, 3))
    if not finite.all():
        first = int(np.argmin(finite))
        where = f"the output without {names[first - 1]} is" if first else "the model's output is"
        raise TrainingError(f"{where} not finite: check weights and scheduler, or score in float32")
    entries = batch.sample[0].numel()
    total, square, size, change, loss = found.swapaxes(0, 1)
    cosine = torch.cat(distances, dim=1).reshape(len(names), bins, images).numpy()
    return BlockSums(names, entries, total, square, size[0], loss, change[1:], cosine)


@contextmanager
def watched(model: nn.Module, structure: Structure) -> Iterator[dict[str, Tensor]]:
    """Collect, at each pass inside the block, 1 - cos(x, block(x)) of the blocks, (B,) float64 on the CPU.

    x is a token (B, N, C) or a pixel (B, C, H, W) of the block's image input; distances are averaged over a sample.
    """
    seen: dict[str, Tensor] = {}

    def watch(block: Block, module: nn.Module) -> Any:
        streams = streams_of(block, module)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            x, y = pick(streams, args, kwargs)[block.image], returned_tensors(block, output)[block.image]
            similarity = F.cosine_similarity(x.float(), y.float(), dim=1 if x.ndim == 4 else -1)
            seen[block.name] = 1 - similarity.flatten(1).cpu().double().mean(1)

        return hook

    with ExitStack() as hooks:
        for name, block in structure.blocks.items():
            module = model.get_submodule(name)
            hooks.enter_context(module.register_forward_hook(watch(block, module), with_kwargs=True))
        yield seen


def removal_order(scores: Array, errors: Array | None = None) -> NDArray[np.intp]:
    """Indices of blocks in the order of removal, along the last axis of `scores` (..., L).

    The lowest score comes first; of equal ones the smaller of `errors` (..., L), then the later block.
    """
    errors = np.zeros_like(scores) if errors is None else errors
    earlier = np.broadcast_to(-np.arange(scores.shape[-1]), scores.shape)
    return np.lexsort((earlier, errors, scores), axis=-1)


def block_scores(names: Sequence[str], scores: Array, errors: Array | None = None) -> dict[str, Tensor]:
    """Scores (L,) by block; equal ones are separated by the smallest float difference, so that they sort in
    `removal_order`."""
    apart = scores.copy()
    order = removal_order(scores, errors)
    for before, after in pairwise(order):
        apart[after] = max(apart[after], np.nextafter(apart[before], np.inf))
    return {name: torch.tensor([score], dtype=torch.float64) for name, score in zip(names, apart.tolist(), strict=True)}


def _sums(output: Tensor, prediction: Tensor, full: Tensor, target: Tensor) -> Tensor:
    """(5, B): total and square of the output; size, change and loss of the prediction, of each tuple."""
    return torch.stack(
        [
            output.flatten(1).sum(1),
            output.square().flatten(1).sum(1),
            prediction.square().flatten(1).sum(1),
            (prediction - full).square().flatten(1).sum(1),
            (prediction - target).square().flatten(1).mean(1),
        ]
    )


def _positive(values: Array) -> Array:
    return np.maximum(values, np.finfo(np.float64).tiny)
