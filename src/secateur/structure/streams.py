"""The tensors that a block takes, changes and returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from .dims import Block


class Stream(NamedTuple):
    """A parameter of a block's `forward`: models pass it by position or by name."""

    position: int
    name: str


def streams_of(block: Block, module: nn.Module) -> tuple[Stream, ...]:
    """The parameters of the block's `module` whose values it returns, in that order."""
    names = list(inspect.signature(module.forward).parameters)
    return tuple(Stream(names.index(name), name) for name in block.returns or names[:1])


def pick(streams: Sequence[Stream], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """The tensors of `streams` in one call."""
    return tuple(args[each.position] if each.position < len(args) else kwargs[each.name] for each in streams)


def first_argument(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The first argument of a call, by position or by name: a layer's input."""
    return next(iter((*args, *kwargs.values())))


def returned_tensors(block: Block, output: Any) -> tuple[Tensor, ...]:
    """The tensors among the values that a block returned."""
    return output if block.returns else (output,)


class Skip(nn.Module):
    """Replaces a removed residual block: returns its arguments unchanged, by default the first."""

    def __init__(self, streams: Sequence[Stream] = (Stream(0, "hidden_states"),), as_tuple: bool = False) -> None:
        super().__init__()
        self.streams, self.as_tuple = tuple(streams), as_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        taken = pick(self.streams, args, kwargs)
        return taken if self.as_tuple else taken[0]


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward function of `module` inside the block; its submodules stay accessible."""
    before = vars(module).get("forward")  # wrappers such as accelerate's set one on the instance
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if before is not None:
            vars(module)["forward"] = before
