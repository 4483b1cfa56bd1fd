"""Sizes of a model: parameters, MACs, bytes and layers, which every evaluation measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..models.network import example_inputs, inference
from ..models.predict import calling
from ..results.measured import Layer
from ..structure.cost import count_flops


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each shared tensor once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of `model(**inputs)`: convolutions, matrix products and attention, at 2 FLOPs each."""
    with inference(model), calling(model):
        return count_flops(model, inputs)[""] // 2


def weights_bytes(model: nn.Module) -> int:
    """Bytes of the state dict as saved, each shared tensor once."""
    storages = {each.untyped_storage()._cdata: each.untyped_storage() for each in model.state_dict().values()}
    return sum(storage.nbytes() for storage in storages.values())


def count_layers(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Layer]:
    """Every module that has its own parameters or computes products itself in `model(**inputs)`.

    In the order of the model's definition. MACs and parameters add up to those of the model.
    """
    with inference(model), calling(model):
        flops = count_flops(model, inputs)

    def total(module: nn.Module, place: str) -> int:
        """FLOPs of a module: those of its own calls, or of the modules inside if these are more.

        A container is never called itself, and a DiT calls an embedding of its first block past that block.
        """
        return max(flops.get(place, 0), within(module, place))

    def within(module: nn.Module, place: str) -> int:
        prefix = f"{place}." if place else ""
        return sum(total(child, f"{prefix}{name}") for name, child in module.named_children())

    layers: list[Layer] = []
    counted: set[int] = set()
    for name, module in model.named_modules():
        macs = (total(module, name) - within(module, name)) // 2
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in counted]
        counted.update(map(id, own))
        if own or macs:
            weight = getattr(module, "weight", None)
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
            layers.append(Layer(name, type(module).__name__, shape, sum(map(Tensor.numel, own)), macs))
    return layers


def costs_of(model: nn.Module) -> dict[str, Any]:
    """The fields of the model's `ModelResult`, of one call on one sample."""
    inputs = example_inputs(model, 1)
    layers = tuple(count_layers(model, inputs))
    return {
        "parameters": count_parameters(model),
        "macs": sum(layer.macs for layer in layers),
        "weights_bytes": weights_bytes(model),
        "layers": layers,
    }
