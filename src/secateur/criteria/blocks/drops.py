"""The model's output without each of its blocks in turn, on the same input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ...structure import Skip, Structure, masked
from ...structure.streams import forward_replaced


def outputs_without_each_block(model: nn.Module, structure: Structure, call: Callable[[], Tensor]) -> Iterator[Tensor]:
    """The output of `call`, which runs `model`, once for each block of `structure`, with that block as the identity.

    Blocks of one list share the computation before the dropped one, so all L of them cost about L / 2 passes; other
    blocks cost a whole pass each.
    """
    drop = _resumed if is_chain(structure) else _masked
    return drop(model, structure, call)


def is_chain(structure: Structure) -> bool:
    """Whether the blocks form one list, each with one input tensor, which comes from the block before it alone."""
    parents = {name.rpartition(".")[0] for name in structure.blocks}
    return len(parents) == 1 and all(block.listed and not block.returns for block in structure.blocks.values())


def passes_of(structure: Structure) -> float:
    """Number of forward passes for one input: the full model and every drop."""
    blocks = len(structure.blocks)
    return 1 + ((blocks - 1) * (blocks + 2) / 2 / blocks if is_chain(structure) else blocks)


def _masked(model: nn.Module, structure: Structure, call: Callable[[], Tensor]) -> Iterator[Tensor]:
    for name in structure.blocks:
        with masked(model, structure, {name: torch.zeros(1)}):
            yield call()


def _resumed(model: nn.Module, structure: Structure, call: Callable[[], Tensor]) -> Iterator[Tensor]:
    """As `_masked`, keeping one residual stream x: in the pass that drops block i, x is the input of block i - 1.

    Blocks before i - 1 pass x on unchanged, under any mask; block i - 1 runs on it, which gives the x of the next pass;
    block i does not run.
    """
    stream: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        stream["next"] = output

    def take_up(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (stream["x"], *args[1:])

    before: nn.Module | None = None
    with ExitStack() as passed:
        for name in structure.blocks:
            block = model.get_submodule(name)
            with ExitStack() as dropped:
                # The mask is for the conditioning that the model's head reads from the first block.
                dropped.enter_context(masked(model, structure, {name: torch.zeros(1)}))
                dropped.enter_context(forward_replaced(block, Skip().forward))
                if before is not None:
                    dropped.enter_context(before.register_forward_hook(keep))
                yield call()
            if before is not None:
                if "x" not in stream:
                    passed.enter_context(before.register_forward_pre_hook(take_up))
                stream["x"] = stream.pop("next")
                passed.enter_context(forward_replaced(before, Skip().forward))
            before = block
