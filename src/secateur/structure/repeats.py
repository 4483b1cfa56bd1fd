"""Equal blocks: a pass without memory runs through few of them, and what they take holds for the others.

Blocks are equal if their layers, shapes and settings are, and if they are called with arguments of the same shapes.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from .dims import Structure
from .memory import LiveBytes
from .streams import forward_replaced, pick, streams_of

T = TypeVar("T")


class _Differ(Exception):
    """Raised in a pass that calls equal blocks with different arguments."""


@dataclass(frozen=True)
class Repeats:
    """Blocks that stand for others.

    Attributes:
        times: how many blocks a block stands for, itself included, by name; 1 for those that are not named.
        others: blocks that a pass leaves out, each with the one that stands for it.
    """

    times: Mapping[str, int]
    others: Mapping[str, str]

    def like(self, name: str) -> str:
        """The module that stands for module `name`, if that is in a block that is left out; else itself."""
        for other, block in self.others.items():
            if name == other or name.startswith(f"{other}."):
                return block + name.removeprefix(other)
        return name

    def spread(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts by module, the whole model's by "", completed by those of the blocks left out."""
        found = dict(counts)
        for other, block in self.others.items():
            within = {name: count for name, count in counts.items() if name == block or name.startswith(f"{block}.")}
            found |= {other + name.removeprefix(block): count for name, count in within.items()}
            holder = other
            while holder:
                holder = holder.rpartition(".")[0]
                if holder in found:  # a list is never called
                    found[holder] += counts.get(block, 0)
        return found


NONE = Repeats({}, {})


def repeats(model: nn.Module, structure: Structure) -> Repeats:
    """Of each kind of equal blocks, the second stands for all but the first and the last, which may be used
    differently."""
    lists: dict[str, list[str]] = defaultdict(list)
    for name, block in structure.blocks.items():
        if block.listed:
            lists[name.rpartition(".")[0]].append(name)
    times: dict[str, int] = {}
    others: dict[str, str] = {}
    for names in lists.values():
        kinds: dict[Hashable, list[str]] = defaultdict(list)
        places = _places([model.get_submodule(name) for name in names])
        for name in names:
            kinds[_facts(model.get_submodule(name), places)].append(name)
        for _, middle, *rest in (kind for kind in kinds.values() if len(kind) > 3):
            times[middle] = len(rest)
            others |= dict.fromkeys(rest[:-1], middle)
    return Repeats(times, others)


def _places(blocks: list[nn.Module]) -> set[str]:
    """Attributes that number the blocks."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for block in blocks:
        for key, value in vars(block).items():
            if type(value) is int:
                numbers[key].add(value)
    return {key for key, values in numbers.items() if len(values) == len(blocks)}


def _facts(block: nn.Module, places: set[str]) -> Hashable:
    """Layers, shapes and settings of a block."""
    layers = tuple(
        (name, type(module), tuple((key, _plain(value)) for key, value in vars(module).items() if key[0] != "_"))
        for name, module in block.named_modules()
        if name
    )
    own = tuple((key, _plain(value)) for key, value in vars(block).items() if key[0] != "_" and key not in places)
    shapes = tuple((name, tuple(each.shape), each.dtype, each.requires_grad) for name, each in block.named_parameters())
    return type(block), own, layers, shapes


def _plain(value: Any) -> Hashable:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, int | float | str | None):
        return value
    return type(value).__qualname__


def once(model: nn.Module, structure: Structure, count: Callable[[Repeats], T]) -> T:
    """`count` with the repeats of `model`; with none, if equal blocks turn out to be called differently."""
    try:
        return count(repeats(model, structure))
    except _Differ:
        return count(NONE)


@contextmanager
def left_out(model: nn.Module, structure: Structure, found: Repeats, live: LiveBytes | None = None) -> Iterator[None]:
    """Inside the block, passes of `model` leave out the others of `found`; `live` counts the bytes of those that stand
    for them as many times."""
    calls: dict[str, Any] = {}
    with ExitStack() as stack:
        for other, block in found.others.items():
            stack.enter_context(_passed_by(model, structure, other, functools.partial(calls.get, block)))
        for name in found.times:
            stack.enter_context(
                model.get_submodule(name).register_forward_pre_hook(_noted(calls, name), with_kwargs=True)
            )
        if live is not None and found.times:
            for name in structure.blocks.keys() - found.others.keys():
                _marked(stack, model.get_submodule(name), live, (id(model), name), found.times.get(name, 1))
        yield


@contextmanager
def _passed_by(model: nn.Module, structure: Structure, name: str, expected: Callable[[], Any]) -> Iterator[None]:
    block, module = structure.blocks[name], model.get_submodule(name)
    streams = streams_of(block, module)

    @functools.wraps(module.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if _shapes(args, kwargs) != expected():
            raise _Differ(name)
        taken = pick(streams, args, kwargs)
        return taken if block.returns else taken[0]

    with forward_replaced(module, forward):
        yield


def _noted(calls: dict[str, Any], name: str) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[name] = _shapes(args, kwargs)

    return hook


def _shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return tree_map_only(Tensor, lambda tensor: (tuple(tensor.shape), tensor.dtype), (args, kwargs))


def _marked(stack: ExitStack, module: nn.Module, live: LiveBytes, label: Hashable, times: int) -> None:
    """Let `live` know where the forward and the backward pass of a block begin."""

    def begin(*_: Any) -> None:
        live.mark(label, times)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        for each in tree_leaves(output):
            if isinstance(each, Tensor) and each.requires_grad:
                each.register_hook(begin)

    stack.enter_context(module.register_forward_pre_hook(begin))
    stack.enter_context(module.register_forward_hook(end))
