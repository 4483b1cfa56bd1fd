"""The model's output without each of its blocks in turn, on the same input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...structure import Skip, Structure, masked, streams_of
from ...structure.streams import forward_replaced


def outputs_without_each_block(model: nn.Module, structure: Structure, call: Callable[[], Tensor]) -> Iterator[Tensor]:
    """The output of `call`, which runs `model`, once for each block of `structure`, with that block as the identity.

    Blocks of a chain share the computation before the dropped one, so all L of them cost about L / 2 passes; other
    blocks cost a whole pass each.
    """
    if is_chain(structure):
        return _resumed(model, structure, call)
    return _masked(model, structure, list(structure.blocks), call)


def is_chain(structure: Structure) -> bool:
    """Whether the blocks are of one list, each with one input tensor; a pass shows whether nothing is between them."""
    parents = {name.rpartition(".")[0] for name in structure.blocks}
    return len(parents) == 1 and all(block.listed and not block.returns for block in structure.blocks.values())


def passes_of(structure: Structure, present: Sequence[str]) -> float:
    """Number of forward passes for one input, of the full model and of every drop; `present` are all of its blocks."""
    names = list(structure.blocks)
    if not is_chain(structure) or not _are_neighbours(names, present):
        return 1 + len(names)
    runs = len(names) * len(present) - 1 - len(names) * (len(names) - 1) / 2  # of blocks
    return 1 + runs / len(present)


def _are_neighbours(names: list[str], present: Sequence[str]) -> bool:
    first = present.index(names[0])
    return list(present[first : first + len(names)]) == names


def _masked(
    model: nn.Module, structure: Structure, names: Sequence[str], call: Callable[[], Tensor]
) -> Iterator[Tensor]:
    for name in names:
        with masked(model, structure, {name: torch.zeros(1)}):
            yield call()


def _resumed(model: nn.Module, structure: Structure, call: Callable[[], Tensor]) -> Iterator[Tensor]:
    """As `_masked`, keeping one residual stream x: in the pass that drops block i, x is the input of block i - 1.

    Blocks before i - 1 pass x on unchanged, under any mask; block i - 1 runs on it, which gives the x of the next pass;
    block i does not run. Where something is between two blocks, such as one that was excluded, the others are masked.
    """
    names = list(structure.blocks)
    stream: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        stream["next"] = output

    def take_up(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (stream["x"], *args[1:])

    before: nn.Module | None = None
    with ExitStack() as passed:
        for name in names:
            block = model.get_submodule(name)
            skip = Skip(streams_of(structure.blocks[name], block))
            with ExitStack() as dropped:
                # The mask is for the conditioning that the model's head reads from the first block.
                dropped.enter_context(masked(model, structure, {name: torch.zeros(1)}))
                dropped.enter_context(forward_replaced(block, skip.forward))
                if before is None:
                    apart = dropped.enter_context(_apart(model, names))
                else:
                    dropped.enter_context(before.register_forward_hook(keep))
                yield call()
            if apart:
                yield from _masked(model, structure, names[1:], call)
                return
            if before is not None:
                if "x" not in stream:
                    passed.enter_context(before.register_forward_pre_hook(take_up))
                stream["x"] = stream.pop("next")
                passed.enter_context(forward_replaced(before, Skip().forward))
            before = block


@contextmanager
def _apart(model: nn.Module, names: Sequence[str]) -> Iterator[list[str]]:
    """Collect, in passes inside the block, the blocks that do not take the very tensor that the one before returned."""
    found: list[str] = []
    returned: dict[str | None, Any] = {None: None}  # of the block that ran last

    def watch(name: str, before: str | None) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not args or before not in returned or (before is not None and args[0] is not returned[before]):
                found.append(name)
            returned.clear()
            returned[name] = output

        return hook

    with ExitStack() as hooks:
        for before, name in pairwise([None, *names]):
            assert name is not None
            hooks.enter_context(model.get_submodule(name).register_forward_hook(watch(name, before)))
        yield found
