"""Memory that a computation takes, counted operator by operator."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the block, as long as they live; `known` ones are not counted.

    Attributes:
        now: present bytes.
        peak: the largest number of bytes so far.
    """

    def __init__(self, known: Iterable[Any] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = [value.untyped_storage() for value in known if isinstance(value, Tensor)]  # alive, as keys
        self._alive = {storage._cdata for storage in self._known}

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
        if key not in self._alive:  # else a view, or in place
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size
