"""Values that networks read from their inputs, such as lengths of captions, for tensors without memory.

On the meta device `.tolist()` and `.item()` fail, and shapes that depend on values are unknown. Inside `KnownValues`
these operations also run on the values of the network's masks and other integer inputs, which are kept.
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
    """`hollow`, a tensor without memory in place of `tensor`, with its values attached if they are integers."""
    if not tensor.is_meta and not tensor.is_floating_point():
        with _disable_current_modes():  # inside a fake mode it would lose its values
            setattr(hollow, VALUE, tensor.cpu())
    return hollow


class KnownValues(TorchFunctionMode):
    """Applies operations whose tensors all have known values to these values, too."""

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
        with _disable_current_modes():  # these operations are not counted
            result = func(*values, **options)
        if func in READERS:
            return result
        has_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        return tree_map_only(Tensor, hollow, result) if has_tensors else func(*args, **(kwargs or {}))
