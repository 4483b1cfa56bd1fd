"""Memory that a computation takes, counted by running it on tensors that have shapes but no data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..structure.cost import skeleton


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside, as long as they live.

    Attributes:
        peak: the most that there were at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._alive.remove(key)
        self._now -= size

    def like(self, inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        """The tensors of `inputs` without their data, those with a fraction in `dtype`."""

        def empty(value: Tensor) -> Tensor:
            return torch.empty_like(value, device="cpu", dtype=dtype if value.is_floating_point() else value.dtype)

        return tree_map_only(Tensor, empty, dict(inputs))


@contextmanager
def without_data(model: nn.Module) -> Iterator[tuple[nn.Module, LiveBytes]]:
    """A copy of `model` in eval mode whose tensors have no data, and the bytes that they and what it computes take.

    As on a CPU: attention is fused, as on accelerators.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as memory:
        yield skeleton(model, "cpu").eval(), memory
