"""Losses and gradients of calibration images at many timesteps, for Taylor scores.

Passes run in the checkpoint's dtype, since large models rarely fit in a wider one; sums of gradients are at least
float32. Gradients come from `backward()` and `.grad`, which works for sharded models (FSDP) too. Gradients of a mean
over pixels underflow in float16: such weights are scored in a float32 copy, which takes twice their memory in addition.
bfloat16 has the range of float32 and is not copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..base.console import Advance, progress
from ..base.errors import TrainingError
from ..base.shards import reshard
from ..data import Batch
from ..models.conditions import repeated, rows
from ..process.base import Process, denoising_error, timesteps_at


def calibration_timesteps(process: Process, count: int) -> Tensor:
    """`count` evenly spaced timesteps from the clean end to noise."""
    return timesteps_at(process, (torch.arange(count, dtype=torch.float64) + 0.5) / count)


def used_timesteps(losses: list[float], threshold: float) -> int:
    """Length of the prefix before the first L_t < threshold * max_{s<=t} L_s; all timesteps if there is none.

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
    """Convert float16 weights to float32 inside the block, and restore them after it."""
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
    """Enable gradients of every parameter inside the block, frozen ones included, which can be pruned as well.

    `.grad` is restored after the block.
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
    """Mean loss at each timestep, in order, up to the one that ends the prefix."""
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
    """Call `take` with each parameter and its gradient of the sum of the losses, one after the other.

    Gradients are passed on during the backward pass and freed at once. With several losses, each a separate pass, their
    sums are kept in between, in at least float32.

    Args:
        model: inside `differentiable`.
        losses: functions that run `model` and return a scalar.
        take: called with gradients in at least float32; sharded ones for a sharded model.
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
        for parameter, gradient in sums.items():  # those that the last pass did not reach
            take(parameter, gradient)
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
    """Functions whose results add up to sum_t L_t, L_t the mean loss at t; each is a pass of at most `batch_size`
    pairs.

    `advance` is called at the start of every timestep.
    """
    images = len(batch.sample)

    def loss(chunk: Tensor, part: slice) -> Tensor:
        if part.start == 0:
            advance(len(chunk), "")
        return _pair_errors(model, process, batch, noise, chunk, part).sum() / images

    chunks = timesteps.split(max(1, batch_size // images))
    return [functools.partial(loss, chunk, part) for chunk in chunks for part in _parts(images, batch_size)]


def _parts(images: int, batch_size: int) -> Iterator[slice]:
    """Slices of the images if they exceed a batch; otherwise all of them."""
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
