"""Full float32 precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 without TF32, which rounds factors to 10 bits and is on for convolutions by default."""
    cuda, cudnn = cast(Any, torch.backends.cuda), cast(Any, torch.backends.cudnn)
    switches = (cuda.matmul, cudnn.conv, cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]  # torch does not allow mixing these with its older switches
    for switch in switches:
        switch.fp32_precision = "ieee"
    try:
        yield
    finally:
        for switch, precision in zip(switches, before, strict=True):
            switch.fp32_precision = precision
