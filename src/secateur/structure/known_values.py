"""What networks read of their inputs on the way, such as the lengths of captions, where tensors have no memory.

Without memory `.tolist()` and `.item()` have nothing to read, and what depends on values has no shape. Inside
`KnownValues` they get what the same operations give for the masks and other integers that the network was handed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

READERS = (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__)
VALUE = "_secateur_value"  # of a tensor without memory


def remember(hollow: Tensor, tensor: Tensor) -> Tensor:
    """`hollow`, which stands for `tensor` and knows its values, if they are integers."""
    if not tensor.is_meta and not tensor.is_floating_point():
        with _disable_current_modes():  # among tensors without memory it would lose its values
            setattr(hollow, VALUE, tensor.cpu())
    return hollow


class KnownValues(TorchFunctionMode):
    """Does every operation on tensors that are known, and on these alone, on their values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        told = (args, dict(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(told) if isinstance(leaf, Tensor)]
        if not tensors or not all(hasattr(tensor, VALUE) for tensor in tensors):
            return func(*args, **(kwargs or {}))
        by_value = {id(getattr(tensor, VALUE)): tensor for tensor in tensors}
        device = tensors[0].device

        def hollow(value: Tensor) -> Tensor:
            if id(value) in by_value:  # it was changed in place
                return by_value[id(value)]
            return remember(torch.empty_like(value, device=device), value)

        on_cpu = tree_map_only(torch.device, lambda _: torch.device("cpu"), told)
        values, options = tree_map_only(Tensor, lambda tensor: getattr(tensor, VALUE), on_cpu)
        with _disable_current_modes():  # nothing of it counts
            result = func(*values, **options)
        if func in READERS:
            return result
        has_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        return tree_map_only(Tensor, hollow, result) if has_tensors else func(*args, **(kwargs or {}))
