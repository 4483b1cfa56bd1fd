"""Memory that a computation takes, counted operator by operator."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class _Part:
    """A part of the time, with the bytes at its beginning and the most during it."""

    label: Hashable
    times: int
    begun: int
    most: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made inside the block, as long as they live; `known` ones are not counted.

    Attributes:
        now: present bytes.
    """

    def __init__(self, known: Iterable[Any] = ()) -> None:
        super().__init__()
        self.now = 0
        self._parts = [_Part(None, 1, 0, 0)]
        self._known = [value.untyped_storage() for value in known if isinstance(value, Tensor)]  # alive, as keys
        self._alive = {storage._cdata for storage in self._known}

    def mark(self, label: Hashable, times: int = 1) -> None:
        """What happens until the next `label` happens this many `times`, one after the other."""
        if label != self._parts[-1].label:
            self._parts.append(_Part(label, times, self.now, self.now))

    @property
    def peak(self) -> int:
        """The largest number of bytes so far."""
        level = most = 0
        ends = [*(part.begun for part in self._parts[1:]), self.now]
        for part, end in zip(self._parts, ends, strict=True):
            added = (part.times - 1) * (end - part.begun)
            most = max(most, level + max(added, 0) + part.most - part.begun)
            level += added + end - part.begun
        return most

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
            self._parts[-1].most = max(self._parts[-1].most, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size
