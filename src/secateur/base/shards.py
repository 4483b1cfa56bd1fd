"""Tensors that are sharded over processes, gathered."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from .errors import SecateurError


def whole(value: Tensor) -> Tensor:
    """Gather a tensor that may be sharded; every process takes part."""
    if not isinstance(value, DTensor):
        return value
    place = torch.device(value.device_mesh.device_type)  # shards may lie on the CPU
    shard = value if value.device.type == place.type else value.to(place)
    return cast(DTensor, shard).full_tensor()


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of `model` are sharded (FSDP2)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def reshard(model: nn.Module) -> None:
    """Make the shards of a sharded model its parameters again, and free the gathered ones.

    After a pass without gradients, its parameters are gathered tensors, which have no gradients.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def require_whole(model: nn.Module, work: str) -> None:
    """Refuse a model that is sharded already for `work` that needs all of its weights.

    Raises:
        SecateurError: it is.
    """
    if is_sharded(model):
        raise SecateurError(
            f"{work} needs whole weights, and those of this {type(model).__name__} are sharded: do it before "
            "`fully_shard`; recovery shards a whole model by itself (recovery.parallel fsdp)"
        )
