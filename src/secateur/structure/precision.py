"""How GPUs multiply float32: literally, or in TF32, which rounds factors to 10 bits.

Set by torch's newer switches. Inside a block its older ones, such as `allow_tf32`, cannot be read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch

DEFAULTS = ["none", "tf32", "tf32"]  # torch's own: convolutions in TF32, matrix products literally


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 without TF32, which is on for convolutions by default."""
    with _products("ieee"):
        yield


@contextmanager
def rounded_products() -> Iterator[None]:
    """Products of float32 in TF32, convolutions included."""
    with _products("tf32"):
        yield


def is_product_precision_chosen() -> bool:
    """Whether the program has set switches of TF32 for itself, by their older names or the new ones."""
    return [switch.fp32_precision for switch in _switches()] != DEFAULTS


@contextmanager
def _products(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    switches = _switches()
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = precision
    try:
        yield
    finally:
        for switch, kept in zip(switches, before, strict=True):
            switch.fp32_precision = kept


def _switches() -> tuple[Any, Any, Any]:
    cuda, cudnn = cast(Any, torch.backends.cuda), cast(Any, torch.backends.cudnn)
    return cuda.matmul, cudnn.conv, cudnn.rnn
