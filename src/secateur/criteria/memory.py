"""Memory that a computation takes, counted by running it on tensors that have shapes but no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from ..structure.cost import skeleton
from ..structure.known_values import remember, without_memory
from ..structure.memory import LiveBytes


def without_values(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The tensors of `inputs` without their data, floating-point ones in `dtype`."""

    def empty(value: Tensor) -> Tensor:
        kind = dtype if value.is_floating_point() else value.dtype
        return remember(torch.empty(value.shape, device="cpu", dtype=kind), value)

    return tree_map_only(Tensor, empty, dict(inputs))


@contextmanager
def without_data(model: nn.Module) -> Iterator[tuple[nn.Module, LiveBytes]]:
    """A copy of `model` in eval mode whose tensors have no data, and a counter of the bytes of all tensors alive.

    Counted as on a CPU; attention is fused, as on accelerators.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        hollow = skeleton(model, "cpu").eval()
        with without_memory():  # lengths that the network reads during a pass
            yield hollow, memory
