"""MACs and parameters of any cut, without applying it.

A convolution or linear layer costs a fixed number of MACs per weight, and attention's score and value products are
proportional to its inner width or fixed, so one counted forward pass of the dense model prices every cut exactly.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from .dims import Structure
from .known_values import remember, without_memory
from .repeats import Repeats, left_out, once


class UncountableError(ValueError):
    """A pass of a model depends on values that it computes, such as which expert a token goes to."""


@dataclass(frozen=True)
class Cost:
    """Size of a model: multiply-accumulates for one sample, the attention products among them, and parameters."""

    macs: float
    attention_macs: float
    parameters: int


@dataclass(frozen=True)
class CostModel:
    """Prices cuts of one model; build it with `cost_model`.

    Attributes:
        structure: of the model.
        shapes: of the parameters, by each of their names.
        tied: for every name, the first name of the same parameter.
        macs_per_weight: of layers, by the name of their weight.
        attention_macs: of attention products, by module.
        head_macs: of the head's call of the first remaining block's conditioning.
    """

    structure: Structure
    shapes: Mapping[str, torch.Size]
    tied: Mapping[str, str]
    macs_per_weight: Mapping[str, float]
    attention_macs: Mapping[str, float]
    head_macs: float

    def __call__(self, kept: Mapping[str, int], removed_blocks: Collection[str] = ()) -> Cost:
        """Cost when each dim named in `kept` has that many units left and `removed_blocks` are gone."""
        lost = self._lost_entries(kept)
        rows = self._rows_left(removed_blocks)
        macs = self.head_macs
        parameters: dict[str, int] = {}
        for name, shape in self.shapes.items():
            if removed_blocks and self.structure.owner(name) in removed_blocks:
                continue
            numel = math.prod(size - lost.get((name, axis), 0) for axis, size in enumerate(shape))
            parameters[self.tied[name]] = numel
            macs += numel * self.macs_per_weight.get(name, 0.0) * rows.get(name, 1.0)
        attention = 0.0
        for module, dense in self.attention_macs.items():
            if removed_blocks and self.structure.owner(module) in removed_blocks:
                continue
            if module in self.structure.attention:
                dim = self.structure.dims[self.structure.attention[module]]
                dense *= kept.get(dim.name, dim.size) / dim.size
            attention += dense
        return Cost(macs + attention, attention, sum(parameters.values()))

    def _rows_left(self, removed_blocks: Collection[str]) -> dict[str, float]:
        """The share of a table's rows that is left, by the parameters that are applied to each row."""
        return {
            name: len(table.kept(removed_blocks)) / table.size
            for table in self.structure.tables
            for name in self.shapes
            if name.startswith(tuple(f"{reader}." for reader in table.readers))
        }

    def _lost_entries(self, kept: Mapping[str, int]) -> dict[tuple[str, int], int]:
        lost: dict[tuple[str, int], int] = {}
        for name, units in kept.items():
            dim = self.structure.dims[name]
            if units == dim.size:
                continue
            for piece in dim.slices:
                key = (piece.parameter, piece.axis)
                lost[key] = lost.get(key, 0) + (dim.size - units) * dim.width_of(piece)
        return lost


def skeleton(model: nn.Module, device: str = "meta") -> nn.Module:
    """A copy of `model` on the meta device, which takes no memory; on another device, with uninitialized values."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    memo: dict[int, Any] = {}
    for _, tensor in tensors:
        empty = torch.empty_like(tensor, device=device)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    with _Shared():
        return copy.deepcopy(model, memo)


class _Shared(TorchFunctionMode):
    """Copies inside the block share tensors that are neither parameters nor buffers, such as rotary frequencies."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return args[0] if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))


def count_flops(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, int]:
    """FLOPs of `model(**inputs)` by module name, the whole model's by "": 2 for each multiply-accumulate.

    Convolutions, matrix products and attention are counted; a module's count includes the modules that it calls.
    """
    # The fused attention kernel of the CPU is missing from torch's counter; the plain one is matrix products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    root = type(model).__name__
    counts = {name: sum(operations.values()) for name, operations in counter.get_flop_counts().items()}
    whole = counts.pop("Global", 0)
    return {name.removeprefix(root).removeprefix("."): flops for name, flops in counts.items()} | {"": whole}


def count_repeated_flops(hollow: nn.Module, structure: Structure, inputs: Mapping[str, Any]) -> dict[str, int]:
    """`count_flops` of a model on the meta device; of equal blocks, few are run."""

    def count(found: Repeats) -> dict[str, int]:
        with left_out(hollow, structure, found):
            return found.spread(count_flops(hollow, inputs))

    with without_memory():
        return once(hollow, structure, count)


def cost_model(model: nn.Module, structure: Structure, inputs: Mapping[str, Any]) -> CostModel:
    """Count one forward pass of `model` on `inputs` (keyword arguments), per sample, on the meta device.

    Raises:
        UncountableError: the pass depends on values that it computes.
    """
    batch_size = len(next(iter(inputs.values())))
    hollow = skeleton(model)
    meta_inputs = tree_map_only(Tensor, lambda value: remember(value.to("meta"), value), dict(inputs))
    try:
        macs = {name: flops // 2 for name, flops in count_repeated_flops(hollow, structure, meta_inputs).items()}
    except RuntimeError as error:  # NotImplementedError too
        reason = str(error).partition("\n")[0]
        raise UncountableError(
            f"the MACs of {type(model).__name__} cannot be counted without running it: {reason}"
        ) from error
    named = dict(hollow.named_parameters(remove_duplicate=False))
    shapes = {name: parameter.shape for name, parameter in named.items()}
    first = {id(parameter): name for name, parameter in hollow.named_parameters()}
    tied = {name: first[id(parameter)] for name, parameter in named.items()}
    weights = {name.removesuffix(".weight"): name for name in shapes if name.endswith(".weight")}
    per_weight = {
        name: macs[module] / shapes[name].numel() / batch_size for module, name in weights.items() if module in macs
    }
    own = _own_macs(macs, weights)
    head_macs = 0
    if structure.head_conditioning:
        # Called twice: once by its block and once by the head.
        shared = next(iter(structure.head_conditioning.values()))
        head_macs = macs[shared] // 2
        own[""] -= head_macs
        per_weight |= {name: each / 2 for name, each in per_weight.items() if name.startswith(shared + ".")}
    products = {module: count / batch_size for module, count in own.items() if count > 0}
    return CostModel(structure, shapes, tied, per_weight, products, head_macs / batch_size)


def own_products(model: nn.Module, inputs: Mapping[str, Any]) -> list[str]:
    """The modules that multiply activations with each other: attention."""
    names = dict(model.named_parameters(remove_duplicate=False))
    weights = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    own = _own_macs(count_flops(model, inputs), weights)
    return [module for module, count in own.items() if module and count > 0]


def _own_macs(macs: Mapping[str, int], weights: Collection[str]) -> dict[str, int]:
    """MACs of each module with neither a weight nor a submodule behind them: attention products."""
    own = {module: count for module, count in macs.items() if module not in weights}
    for module, count in macs.items():
        parent = module.rpartition(".")[0]
        while parent and parent not in macs:  # a list of modules is never called
            parent = parent.rpartition(".")[0]
        if module and parent in own:
            own[parent] -= count
    return own
