"""Values that networks read from their inputs, such as lengths of captions, for tensors without memory.

On the meta device `.tolist()` and `.item()` fail, and shapes that depend on values are unknown. Inside `KnownValues`
these operations also run on the values of the network's masks and other integer inputs, which are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

READERS = (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__)
VALUE = "_secateur_value"  # of a tensor without memory


def remember(hollow: Tensor, tensor: Tensor) -> Tensor:
    """`hollow`, a tensor without memory in place of `tensor`, with its values attached if they are integers and
    known."""
    known = getattr(tensor, VALUE, None if tensor.is_meta else tensor)
    if known is not None and not tensor.is_floating_point():
        with _disable_current_modes():  # inside a fake mode it would lose its values
            setattr(hollow, VALUE, known.cpu())
    return hollow


class KnownValues(TorchFunctionMode):
    """Applies operations whose tensors all have known values to these values, too."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = (args, dict(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        if not tensors or not all(hasattr(tensor, VALUE) for tensor in tensors):
            return _sized(func, list(args), dict(kwargs or {}))
        by_value = {id(getattr(tensor, VALUE)): tensor for tensor in tensors}
        device = tensors[0].device

        def hollow(value: Tensor) -> Tensor:
            if id(value) in by_value:  # it was changed in place
                return by_value[id(value)]
            return remember(torch.empty_like(value, device=device), value)

        on_cpu = tree_map_only(torch.device, lambda _: torch.device("cpu"), arguments)
        values, options = tree_map_only(Tensor, lambda tensor: getattr(tensor, VALUE), on_cpu)
        with _disable_current_modes():  # these operations are not counted
            result = func(*values, **options)
        if func in READERS:
            return result
        has_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        return tree_map_only(Tensor, hollow, result) if has_tensors else func(*args, **(kwargs or {}))


def _sized(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """`func` on tensors without memory, told the size of its result where that depends on integers that are known."""
    if func in (Tensor.__getitem__, Tensor.__setitem__) and _is_known_mask(args[1]):
        with _disable_current_modes():
            places = getattr(args[1], VALUE).nonzero(as_tuple=True)
        args[1] = tuple(torch.empty_like(each, device=args[0].device) for each in places)
    repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
    if func in (Tensor.repeat_interleave, torch.repeat_interleave) and hasattr(repeats, VALUE):
        with _disable_current_modes():
            kwargs["output_size"] = int(getattr(repeats, VALUE).sum())
    return func(*args, **kwargs)


def _is_known_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and hasattr(index, VALUE)


class _Autocast(torch.autocast):
    """Autocast that knows the meta device, where no precision matters."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == "meta":
            device_type, args, kwargs = "cpu", (), {"enabled": False}
        super().__init__(device_type, *args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Let networks run on the meta device inside the block that read integers on the way, or ask for a precision."""
    with patch.object(torch, "autocast", _Autocast), KnownValues():
        yield
