"""Losses and gradients of calibration images at many timesteps: what Taylor scores are made of.

Passes run in the checkpoint's dtype, since large models rarely fit in another; sums of gradients are float32 at least.
They are taken from `backward()` and `.grad`, so models whose weights are sharded over processes (FSDP) have them too.
Gradients of a mean over pixels are below the range of float16: such weights are scored as a float32 copy, which takes
twice their memory more. bfloat16 has the range of float32 and is not copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..base.console import Advance, progress
from ..base.errors import TrainingError
from ..data import Batch
from ..models.conditions import repeated, rows
from ..process.base import Process, denoising_error, timesteps_at


def calibration_timesteps(process: Process, count: int) -> Tensor:
    """`count` evenly spaced timesteps from the clean end to noise."""
    return timesteps_at(process, (torch.arange(count, dtype=torch.float64) + 0.5) / count)


def used_timesteps(losses: list[float], threshold: float) -> int:
    """Length of the prefix before the first L_t < threshold * max_{s<=t} L_s; everything when there is none.

    The stop rule of Diff-Pruning (section 4.2); threshold 0 never stops.
    """
    largest = 0.0
    for count, loss in enumerate(losses):
        largest = max(largest, loss)
        if loss < threshold * largest:
            return count
    return len(losses)


@contextmanager
def in_range(model: nn.Module) -> Iterator[None]:
    """Hold what is float16 in float32 inside the block, and what it was before after it."""
    halves = [(held, held.data) for held in (*model.parameters(), *model.buffers()) if held.dtype == torch.float16]
    for held, values in halves:
        held.data = values.float()
    try:
        yield
    finally:
        for held, values in halves:
            held.data = values


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Gradients of every parameter inside the block, frozen ones too: what is frozen can be pruned all the same.

    What was in `.grad` is there again after the block.
    """
    reshard(model)
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    for parameter, _, _ in before:
        parameter.requires_grad_(True)
        parameter.grad = None
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, required, gradient in before:
            parameter.requires_grad_(required)
            parameter.grad = gradient


@torch.no_grad()
def timestep_losses(
    model: nn.Module,
    process: Process,
    batch: Batch,
    noise: Tensor,
    timesteps: Tensor,
    threshold: float,
    batch_size: int,
) -> list[float]:
    """Mean loss at each timestep, in order, up to the first that ends the prefix."""
    images = len(batch.sample)
    at_once = max(1, batch_size // images)
    losses: list[float] = []
    with progress("calibration losses", len(timesteps)) as advance:
        for chunk in timesteps.split(at_once):
            pairs = [_pair_errors(model, process, batch, noise, chunk, part) for part in _parts(images, batch_size)]
            losses += torch.cat(pairs, dim=1).cpu().double().mean(1).tolist()
            if not all(map(torch.isfinite, torch.tensor(losses[-len(chunk) :]))):
                raise TrainingError(
                    "a calibration loss is not finite: check that the model's weights and its scheduler fit together"
                )
            advance(len(chunk), "")
            stop = used_timesteps(losses, threshold)
            if stop < len(losses):
                return losses[: stop + 1]
    return losses


def stream_gradients(
    model: nn.Module, losses: Sequence[Callable[[], Tensor]], take: Callable[[nn.Parameter, Tensor], None]
) -> None:
    """Give each parameter and its gradient of the sum of the losses to `take`, one parameter after the other.

    Gradients come from the backward pass itself and are freed as soon as they were taken. Where there are several
    losses, each a pass of its own, their sum is kept on the way, in float32 at least.

    Args:
        model: inside `differentiable`.
        losses: functions that run `model` and return a scalar.
        take: gets gradients in float32 at least; of a sharded model, sharded ones.
    """
    sums: dict[nn.Parameter, Tensor] = {}
    is_last = False

    def hook(parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        assert parameter.grad is not None
        gradient = parameter.grad.to(torch.promote_types(parameter.dtype, torch.float32))
        parameter.grad = None
        if parameter in sums:
            gradient = sums.pop(parameter).add_(gradient)
        if is_last:
            take(parameter, gradient)
        else:
            sums[parameter] = gradient

    handles = [parameter.register_post_accumulate_grad_hook(hook) for parameter in model.parameters()]
    try:
        for place, loss in enumerate(losses, start=1):
            is_last = place == len(losses)
            loss().backward()
    finally:
        for handle in handles:
            handle.remove()


def calibration_passes(
    model: nn.Module,
    process: Process,
    batch: Batch,
    noise: Tensor,
    timesteps: Tensor,
    batch_size: int,
    advance: Advance = lambda *_: None,
) -> list[Callable[[], Tensor]]:
    """Functions whose results add up to sum_t L_t, L_t the mean loss at t: passes of `batch_size` pairs at most.

    `advance` is called at every timestep that begins.
    """
    images = len(batch.sample)

    def loss(chunk: Tensor, part: slice) -> Tensor:
        if part.start == 0:
            advance(len(chunk), "")
        return _pair_errors(model, process, batch, noise, chunk, part).sum() / images

    chunks = timesteps.split(max(1, batch_size // images))
    return [functools.partial(loss, chunk, part) for chunk in chunks for part in _parts(images, batch_size)]


def reshard(model: nn.Module) -> None:
    """Of a model whose weights are sharded over processes, name the shards as its parameters again.

    After a pass without gradients they are whole, and have none.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _parts(images: int, batch_size: int) -> Iterator[slice]:
    """Slices of the images when they alone exceed a batch; otherwise all of them."""
    step = min(images, batch_size)
    return (slice(start, start + step) for start in range(0, images, step))


def _pair_errors(
    model: nn.Module, process: Process, batch: Batch, noise: Tensor, timesteps: Tensor, part: slice
) -> Tensor:
    """Errors (T, B) of every pair of `timesteps` (T,) and the images of `part` (B), in one pass."""
    count = len(timesteps)
    sample = batch.sample[part]
    images = len(sample)
    repeat = (count, *[1] * (sample.ndim - 1))
    errors = denoising_error(
        model,
        process,
        sample.repeat(repeat),
        noise[part].repeat(repeat),
        timesteps.repeat_interleave(images),
        repeated(rows(batch.conditions, part), count),
    )
    return errors.reshape(count, images)
