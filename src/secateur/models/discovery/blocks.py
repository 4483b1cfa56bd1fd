"""The blocks of a model: elements of lists, each of which returns tensors like those that it takes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ...structure import Block


def listed_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Elements of the outermost lists of `model`, by name, without those of nested lists."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{outer}.") for outer in found):
            found |= {f"{name}.{i}": element for i, element in enumerate(module)}
    return found


@dataclass
class _Call:
    taken: dict[str, Tensor] = field(default_factory=dict)
    returned: Any = None


def blocks_of(model: nn.Module, elements: Mapping[str, nn.Module], run: Any) -> tuple[dict[str, Block], dict[str, str]]:
    """The blocks among `elements`, and why others are not blocks, as observed in one pass, `run()`.

    A block returns tensors with the shapes of some of its arguments. Which ones follows from the next element of its
    list, which takes the returned tensors.
    """
    calls: dict[str, list[_Call]] = {name: [] for name in elements}
    handles = []
    for name, element in elements.items():
        handles.append(element.register_forward_hook(_record(element, calls[name]), with_kwargs=True))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    blocks: dict[str, Block] = {}
    left_out: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    for name in elements:
        lists.setdefault(name.rpartition(".")[0], []).append(name)
    for names in lists.values():
        streams = _streams([calls[name] for name in names])
        for name in names:
            if next(elements[name].children(), None) is None:
                left_out[name] = "a single layer, no block"
            elif len(calls[name]) != 1:
                left_out[name] = f"called {len(calls[name])} times in a pass"
            elif (returns := _returns(calls[name][0], streams)) is None:
                left_out[name] = "does not return what it takes, so it cannot be skipped"
            else:
                blocks[name] = Block(name, listed=True, returns=returns)
    return blocks, left_out


def _record(element: nn.Module, calls: list[_Call]) -> Any:
    names = list(inspect.signature(element.forward).parameters)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        calls.append(_Call({key: value for key, value in given.items() if isinstance(value, Tensor)}, output))

    return hook


def _streams(calls: list[list[_Call]]) -> dict[int, str]:
    """For each position of the returned values of a list's elements, the argument as which the next element takes
    it."""
    found: dict[int, str] = {}
    for this, following in itertools.pairwise(calls):
        if len(this) != 1 or len(following) != 1:
            continue
        for position, tensor in enumerate(_tensors(this[0].returned) or ()):
            for name, taken in following[0].taken.items():
                if taken is tensor:
                    found.setdefault(position, name)
    return found


def _returns(call: _Call, streams: Mapping[int, str]) -> tuple[str, ...] | None:
    """The arguments that the call returned, in order; empty for one bare tensor; None if it is no block."""
    tensors = _tensors(call.returned)
    if tensors is None:
        return None
    names = []
    for position, tensor in enumerate(tensors):
        alike = [name for name, taken in call.taken.items() if taken.shape == tensor.shape and name not in names]
        name = streams.get(position, alike[0] if alike else "")
        if name not in alike:
            return None
        names.append(name)
    bare = isinstance(call.returned, Tensor)
    return () if bare and names == [next(iter(call.taken))] else tuple(names)


def _tensors(returned: Any) -> tuple[Tensor, ...] | None:
    """The returned tensors, if a module returned a tensor or a tuple of tensors."""
    if isinstance(returned, Tensor):
        return (returned,)
    is_tuple = isinstance(returned, tuple) and returned and all(isinstance(each, Tensor) for each in returned)
    return tuple(returned) if is_tuple else None
