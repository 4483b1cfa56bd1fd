"""Values that networks read from their inputs, such as lengths of captions, for tensors without memory.

On the meta device `.tolist()` and `.item()` fail, and shapes that depend on values are unknown. Inside `KnownValues`
these operations also run on the values of the network's integers: its masks and other inputs, and what it makes itself.
Of other inputs, small ones can be compared. Where a network routes tokens by scores that it computes, each expert gets
as many.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

READERS = (
    Tensor.tolist,
    Tensor.item,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
)
MAKERS = (torch.zeros, torch.ones, torch.full, torch.arange, torch.tensor)
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge"}
REPEATS = {"repeat", "expand", "repeat_interleave", "tile", "one_hot"}
SHAPED = (Tensor.__getitem__, Tensor.reshape, Tensor.view, Tensor.repeat, Tensor.expand)  # by numbers
VALUE = "_secateur_value"  # of a tensor without memory
SMALL = 2**20  # entries of an input that can be compared
LARGE = 2**22  # entries of a result whose values would take long: a mask for each pair of tokens


def remember(hollow: Tensor, tensor: Tensor) -> Tensor:
    """`hollow`, a tensor without memory in place of `tensor`, with its values attached if they are known, and integers
    or few."""
    known = getattr(tensor, VALUE, None if tensor.is_meta else tensor)
    if known is not None and (_is_integer(tensor) or tensor.numel() <= SMALL):
        with _disable_current_modes():  # inside a fake mode it would lose its values
            setattr(hollow, VALUE, known.detach().cpu())
    return hollow


def placed_like(other: Tensor, value: Tensor) -> Tensor:
    """`value` on the device of `other` and, if floating-point, in its dtype; on the meta device it stays known."""
    there = value.to(other.device, other.dtype if value.is_floating_point() else value.dtype)
    return remember(there, value) if there.is_meta else there


class KnownValues(TorchFunctionMode):
    """Applies operations whose tensors all have known values to these values, too."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        arguments = (args, dict(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        if not tensors and func in MAKERS:
            made = func(*args, **arguments[1])
            is_hollow = made.is_meta or isinstance(made, FakeTensor)
            return remember(made, _by_value(func, arguments)) if is_hollow and _is_integer(made) else made
        is_known = tensors and all(_is_known(tensor, func) for tensor in tensors)
        if not is_known or (func not in READERS and _is_large(func, arguments, tensors)):
            return _sized(func, list(args), dict(kwargs or {}))
        by_value = {id(getattr(tensor, VALUE)): tensor for tensor in tensors}
        device = tensors[0].device

        def hollow(value: Tensor) -> Tensor:
            if id(value) in by_value:  # it was changed in place
                return by_value[id(value)]
            made = torch.empty_like(value, device=device)
            return remember(made, value) if _is_integer(value) else made

        result = _by_value(func, arguments)
        if func in READERS:
            return result
        if func is Tensor.__iter__:
            return map(hollow, result)
        has_tensors = any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))
        return tree_map_only(Tensor, hollow, result) if has_tensors else func(*args, **(kwargs or {}))


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _is_known(tensor: Tensor, func: Any) -> bool:
    """Whether `func` can be applied to the values of `tensor`; what is not an integer is only compared."""
    return hasattr(tensor, VALUE) and (_is_integer(tensor) or getattr(func, "__name__", "").strip("_") in COMPARISONS)


def _is_large(func: Any, arguments: Any, tensors: list[Tensor]) -> bool:
    if getattr(func, "__name__", "") not in REPEATS and math.prod(tensor.numel() for tensor in tensors) <= LARGE:
        return False  # what is broadcast has at most as many entries
    with _disable_current_modes():
        try:
            result = func(*arguments[0], **arguments[1])
        except Exception:  # its shape depends on values
            return False
    return any(leaf.numel() > LARGE for leaf in tree_leaves(result) if isinstance(leaf, Tensor))


def _by_value(func: Any, arguments: Any) -> Any:
    """The result of `func` for the values of its arguments, which is not counted."""
    on_cpu = tree_map_only(torch.device, lambda _: torch.device("cpu"), arguments)
    values, options = tree_map_only(Tensor, lambda tensor: getattr(tensor, VALUE), on_cpu)
    options |= {"device": "cpu"} if "device" in options else {}
    with _disable_current_modes():
        return func(*values, **options)


def _sized(func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """`func` on tensors without memory, told the size of its result where that depends on integers that are known."""
    if func in (Tensor.__getitem__, Tensor.__setitem__) and _is_known_mask(args[1]):
        with _disable_current_modes():
            places = getattr(args[1], VALUE).nonzero(as_tuple=True)
        args[1] = tuple(torch.empty_like(each, device=args[0].device) for each in places)
    if func in SHAPED:
        args[1:] = [_numbers(each) for each in args[1:]]
    repeats = args[1] if len(args) > 1 else kwargs.get("repeats")
    if func in (Tensor.repeat_interleave, torch.repeat_interleave) and hasattr(repeats, VALUE):
        with _disable_current_modes():
            kwargs["output_size"] = int(getattr(repeats, VALUE).sum())
    result = func(*args, **kwargs)
    if func in (Tensor.topk, torch.topk):
        _spread_evenly(result.indices, args[0].shape[kwargs.get("dim", args[2] if len(args) > 2 else -1)])
    return result


def _numbers(index: Any) -> Any:
    """Sizes or places, those in known tensors as numbers."""
    if isinstance(index, tuple | list):
        return type(index)(map(_numbers, index))
    if isinstance(index, slice):
        return slice(*map(_numbers, (index.start, index.stop, index.step)))
    is_number = isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool and hasattr(index, VALUE)
    return int(getattr(index, VALUE)) if is_number else index


def _spread_evenly(indices: Tensor, count: int) -> None:
    """Let `indices`, chosen by unknown scores among `count` places, choose each place equally often."""
    with _disable_current_modes():
        setattr(indices, VALUE, (torch.arange(indices.numel()) % count).view(indices.shape))


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
