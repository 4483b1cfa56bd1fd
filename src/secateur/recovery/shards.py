"""Sharded weights: torch's `fully_shard` around the blocks of a network, and back to whole tensors.

A sharded network is a second set of modules over shards of the first one's weights, so nothing has to be unwrapped: the
first, on the meta device meanwhile, is always what is cut, written and returned.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import Optimizer

from ..base.distributed import process_count
from ..base.shards import reshard, whole
from ..models.registry import family_of
from .lora import without_factors


def mesh_over(device: torch.device, hybrid: bool) -> DeviceMesh:
    """All processes in one dimension; or, if `hybrid`, (nodes, processes of a node), with a replica on every node."""
    processes = process_count()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if hybrid:
        return init_device_mesh(device.type, (processes // local, local), mesh_dim_names=("replicate", "shard"))
    return init_device_mesh(device.type, (processes,), mesh_dim_names=("shard",))


def sharded(
    model: nn.Module,
    mesh: DeviceMesh,
    precision: torch.dtype | None = None,
    keeps_graph: bool = False,
    frozen: bool = False,
    offload: bool = False,
) -> nn.Module:
    """A network over the shards of `model`'s weights, for passes and updates.

    Args:
        model: a network in any mode, with or without hooks; it does not change, and shares its buffers.
        mesh: see `mesh_over`.
        precision: dtype in which weights are gathered for a pass; None keeps their own.
        keeps_graph: keep gathered weights from a forward pass until `reshard`, as second derivatives require.
        frozen: no weight gets a gradient.
        offload: keep shards on the CPU.
    """
    shards = _twin(model, frozen)
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": not keeps_graph}
    halves = precision or next(model.parameters()).dtype == torch.bfloat16
    options["mp_policy"] = MixedPrecisionPolicy(precision, torch.float32 if halves else None, cast_forward_inputs=False)
    if offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    for name in block_names(model):
        fully_shard(shards.get_submodule(name), **options)
    fully_shard(shards, **options)
    if keeps_graph:
        assert isinstance(shards, FSDPModule)
        shards.set_reshard_after_backward(False)
    return shards


def empty(model: nn.Module) -> None:
    """Free the weights of `model`; shapes, dtypes and ties stay."""
    replace_parameters(model, lambda name, parameter: parameter.detach().to("meta"))


def fill(model: nn.Module, shards: nn.Module, keep: bool = True) -> None:
    """Give `model` the whole weights of `shards`, on the CPU, in the processes that `keep` them; all take part."""
    reshard(shards)
    found: dict[str, Tensor] = {}
    for name, parameter in shards.named_parameters():
        gathered = whole(parameter.detach())
        if keep:
            found[name] = gathered.cpu()
    if keep:
        replace_parameters(model, lambda name, parameter: found[name])


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard `value` as `parameter`, if that is sharded; a value of another shape is returned as it is."""
    if not isinstance(parameter, DTensor):
        return value
    if value.shape != parameter.shape:
        return value if value.ndim == 0 else value.to(parameter.device)
    mesh = parameter.device_mesh
    replica = DTensor.from_local(value.to(parameter.device), mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replica.redistribute(placements=parameter.placements)


def exchange(
    optimizer: Optimizer, successors: Mapping[Tensor, Tensor], change: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Replace the parameters of `optimizer` by their successors, and its state by `change(value, successor)`."""
    state: dict[Tensor, dict[str, Any]] = {}
    for parameter, remembered in optimizer.state.items():
        successor = successors[parameter]
        state[successor] = {
            key: change(value, successor) if isinstance(value, Tensor) else value for key, value in remembered.items()
        }
    optimizer.state.clear()
    optimizer.state.update(state)
    for group in optimizer.param_groups:
        group["params"] = [successors[parameter] for parameter in group["params"]]


def _twin(model: nn.Module, frozen: bool) -> nn.Module:
    """A copy of the modules of `model`, with its own parameters over the same memory."""
    memo: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad and not frozen)
        for parameter in model.parameters()
    }
    memo |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, memo)


def replace_parameters(model: nn.Module, value_of: Callable[[str, nn.Parameter], Tensor]) -> None:
    """Replace the parameters by other tensors; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        made[parameter] = nn.Parameter(value_of(name, parameter), parameter.requires_grad)
    for module in model.modules():
        for name, held in module._parameters.items():
            if held is not None:
                module._parameters[name] = made[held]


def block_names(model: nn.Module) -> list[str]:
    """The modules whose weights are gathered, or copied to the device, one at a time; inner ones first.

    They are blocks, and modules called from outside of them. A block is any module of a declared block's class,
    removable or not, or of a class that diffusers does not split between devices. There are none if parameters are
    tied.
    """
    bare = without_factors(model)
    inner = {type(bare.get_submodule(name)).__name__ for name in family_of(bare).describe(bare).blocks}
    classes = inner.union(getattr(model, "_no_split_modules", None) or ())
    outside = family_of(model).used_outside
    names = [
        name
        for name, module in model.named_modules()
        if name
        and (type(module).__name__ in classes or any(fnmatchcase(name, pattern) for pattern in outside))
        and next(module.parameters(), None) is not None
    ]
    tied = len(list(model.parameters())) < len(list(model.named_parameters(remove_duplicate=False)))
    return [] if tied else sorted(names, key=lambda name: -name.count("."))
