"""Dropout by image: masks do not depend on how many processes or micro-batches share a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..base.seeds import MOST


@contextmanager
def dropout_by_image(network: nn.Module, places: Callable[[], range]) -> Iterator[None]:
    """Inside the block, every `nn.Dropout` of `network` draws the mask of an image from its place in the batch.

    `places()` are those of the micro-batch that passes. Each pass of a layer takes its seed from torch's generator on
    the CPU, which must be seeded alike in all processes; recomputed blocks get theirs again, since checkpointing
    restores that generator. An image may have several rows, as frames do.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    for layer in layers:
        layer.forward = partial(_dropped, layer, places)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _dropped(layer: nn.Dropout, places: Callable[[], range], x: Tensor) -> Tensor:
    if not layer.training:
        return x
    seed = int(torch.randint(MOST // 2, (1,)).numpy()[0])  # by numpy: no operator that may wait for a device
    generator = torch.Generator(x.device)
    kept = torch.empty(x.shape, dtype=torch.bool, device=x.device)
    images = places()
    for place, rows in zip(images, kept.chunk(len(images)), strict=False):  # fewer rows where a part of them passes
        rows.bernoulli_(1 - layer.p, generator=generator.manual_seed(seed + place))
    return x * kept / ((1 - layer.p) or 1)
