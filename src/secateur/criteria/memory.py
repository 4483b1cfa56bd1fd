"""Memory that a computation takes, counted by running it on tensors that have shapes but no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from ..models.registry import family_of
from ..structure.cost import skeleton
from ..structure.known_values import remember, without_memory
from ..structure.memory import LiveBytes

FEW = 4  # samples in the first count
NEAR = 1.1


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


def peak_of_batch(model: nn.Module, count: Callable[[int], int], batch_size: int) -> int:
    """`count(batch_size)`, the peak bytes of passes; found from smaller batches if passes loop over the samples.

    At every moment there are bytes that do not depend on the batch, and bytes of each sample. So the peak is at least
    on the line through the peaks of two smaller batches, and at most proportional to the larger of these. The line is
    returned where both bounds are within a tenth; it is exact if the same moment is the peak of all.
    """
    if not family_of(model).loops_over_samples:
        return count(batch_size)
    few = FEW
    while 2 * few < batch_size:
        small, large = count(few), count(2 * few)
        least = small + (batch_size - few) * (large - small) // few
        if large * batch_size <= NEAR * least * 2 * few:
            return least
        few *= 4
    return count(batch_size)
