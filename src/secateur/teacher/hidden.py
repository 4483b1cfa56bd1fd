"""Hidden states of a network's blocks, and the origin of the network."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..io.manifest import manifest_of
from ..models.predict import network_of
from ..models.registry import describe
from ..structure import Cut
from ..structure.streams import pick, returned_tensors, streams_of


@dataclass(frozen=True)
class Call:
    """One call of a block: its arguments, the image's stream before and after it, and autocast's dtype, if it was
    on."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    taken: Tensor
    returned: Tensor
    autocast: torch.dtype | None = None


@contextmanager
def hidden_states(model: nn.Module, blocks: Collection[str]) -> Iterator[dict[str, list[Call]]]:
    """Collect the calls of the named `blocks` of `model` inside the with-block, by name."""
    network = network_of(model)
    structure = describe(network)
    calls: dict[str, list[Call]] = {name: [] for name in blocks}
    handles = []
    for name in blocks:
        block, module = structure.blocks[name], network.get_submodule(name)
        streams = streams_of(block, module)

        def hook(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
            name: str = name,
            block: Any = block,
            streams: Any = streams,
        ) -> None:
            taken, returned = pick(streams, args, kwargs)[block.image], returned_tensors(block, output)[block.image]
            calls[name].append(Call(args, kwargs, taken, returned, _autocast_on(taken.device.type)))

        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _autocast_on(device_type: str) -> torch.dtype | None:
    on = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if on else None


@dataclass(frozen=True, eq=False)
class Lineage:
    """What identifies a dense model's blocks in a pruned one.

    Attributes:
        blocks: names of its blocks, in the order of the forward pass.
        cuts: earlier cuts that made it, if it was pruned itself.
    """

    blocks: tuple[str, ...]
    cuts: tuple[Cut, ...]


def lineage_of(network: nn.Module) -> Lineage:
    """The lineage of a dense model, by its structure and its manifest."""
    manifest = manifest_of(network)
    return Lineage(tuple(describe(network).blocks), () if manifest is None else manifest.cuts)
