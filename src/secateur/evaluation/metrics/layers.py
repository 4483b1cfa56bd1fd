"""What each layer of a model costs: the rows of a table that add up to the whole model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...models.network import inference
from ...results import Layer


def count_flops(model: nn.Module, inputs: Mapping[str, Tensor]) -> FlopCounterMode:
    """The counter after one call `model(**inputs)`: convolutions, matrix products and attention, at 2 FLOPs a MAC."""
    # The fused attention kernel of the CPU is missing from torch's counter; the plain one is matrix products.
    with inference(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter


def count_layers(model: nn.Module, inputs: Mapping[str, Tensor]) -> list[Layer]:
    """Every module that has parameters of its own or computes products itself in `model(**inputs)`.

    In the order of the model's definition. MACs and parameters add up to those of the model.
    """
    root = type(model).__name__
    counts = count_flops(model, inputs).get_flop_counts()
    flops = {name: sum(found.values()) for name, found in counts.items()}

    def total(module: nn.Module, place: str) -> int:
        """FLOPs of a module: of its own calls, or those inside where these are more.

        A container is never called itself, and a DiT calls an embedding of its first block past that block.
        """
        return max(flops.get(place, 0), within(module, place))

    def within(module: nn.Module, place: str) -> int:
        return sum(total(child, f"{place}.{name}") for name, child in module.named_children())

    layers: list[Layer] = []
    counted: set[int] = set()
    for name, module in model.named_modules():
        place = f"{root}.{name}" if name else root
        macs = (total(module, place) - within(module, place)) // 2
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in counted]
        counted.update(map(id, own))
        if own or macs:
            weight = getattr(module, "weight", None)
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
            layers.append(Layer(name, type(module).__name__, shape, sum(map(Tensor.numel, own)), macs))
    return layers
