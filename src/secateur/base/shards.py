"""Tensors that are sharded over processes, gathered."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def whole(value: Tensor) -> Tensor:
    """Gather a tensor that may be sharded; every process takes part."""
    if not isinstance(value, DTensor):
        return value
    place = torch.device(value.device_mesh.device_type)  # shards may lie on the CPU
    shard = value if value.device.type == place.type else value.to(place)
    return cast(DTensor, shard).full_tensor()
