"""Forward passes that stop before chosen modules, so that many can proceed through a model side by side.

A layer is refitted on its inputs from all calibration tuples, after all layers before it. Here every micro-batch is a
separate pass, which waits before the layer until it is refitted and then continues: one pass of the model in total, for
any architecture. While waiting, a pass keeps the tensors that are alive at that point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..structure.streams import forward_replaced


@dataclass(frozen=True)
class Call:
    """A module that is about to be called."""

    name: str
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> Any:
        """The module's result, with its present weights."""
        return self.forward(*self.args, **self.kwargs)


class Pass:
    """A call of `run` that is stopped before the module of `call`, or has ended with `result`.

    Create and resume it inside `stops`.
    """

    def __init__(self, run: Callable[[], Any]) -> None:
        self._run = greenlet(run)
        self.call: Call | None = None
        self.result: Any = None
        self.resume()

    def resume(self, output: Any = None) -> None:
        """Continue to the next stop; with `output`, that replaces the module's call."""
        reached = self._run.switch() if self.call is None else self._run.switch(output)
        if self._run.dead:
            self.call, self.result = None, reached
        else:
            self.call = reached

    def tensors(self) -> list[Tensor]:
        """The tensors that the waiting pass holds: those in local variables of its functions, without weights."""
        found: dict[int, Tensor] = {}
        frame = self._run.gr_frame
        while frame is not None:
            for leaf in tree_leaves(list(frame.f_locals.values())):
                if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter):
                    found[id(leaf)] = leaf
            frame = frame.f_back
        return list(found.values())


class Parking:
    """Keeps tensors of waiting passes in CPU memory until their pass is needed again.

    Several passes may hold the same tensor.
    """

    def __init__(self) -> None:
        self._parked: dict[int, tuple[Tensor, torch.device]] = {}
        self._held: dict[Pass, list[Tensor]] = {}

    def park(self, waiting: Pass) -> None:
        """Move the tensors of the pass to the CPU."""
        self._held[waiting] = waiting.tensors()
        for tensor in self._held[waiting]:
            if tensor.device.type != "cpu":
                self._parked[id(tensor)] = tensor, tensor.device
                tensor.data = tensor.data.cpu()

    def fetch(self, waiting: Pass) -> None:
        """Move the tensors of the pass back."""
        for tensor in self._held.pop(waiting, []):
            if id(tensor) in self._parked:
                _, device = self._parked.pop(id(tensor))
                tensor.data = tensor.data.to(device)


def begin(parking: Parking | None, run: Callable[[], Any]) -> Pass:
    """A pass of `run` that waits at its first stop, parked if there is a `parking`."""
    begun = Pass(run)
    if parking is not None:
        parking.park(begun)
    return begun


def lead_on(parking: Parking | None, waiting: Iterable[Pass]) -> None:
    """Let every pass call the module before which it waits, and continue to the next stop."""
    for each in waiting:
        with at_hand(parking, each):
            each.resume()


@contextmanager
def at_hand(parking: Parking | None, *waiting: Pass) -> Iterator[None]:
    """Fetch the passes for the block, and park them after it."""
    if parking is not None:
        for each in waiting:
            parking.fetch(each)
    yield
    if parking is not None:
        for each in waiting:
            parking.park(each)


@contextmanager
def stops(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside the block, every `Pass` stops before each of `modules`; other calls are not affected."""
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(_stop(name, module))
        yield


@contextmanager
def _stop(name: str, module: nn.Module) -> Iterator[None]:
    forward = module.forward

    @wraps(forward)  # others read its signature
    def stop(*args: Any, **kwargs: Any) -> Any:
        parent = getcurrent().parent
        output = None if parent is None else parent.switch(Call(name, forward, args, kwargs))
        return forward(*args, **kwargs) if output is None else output

    with forward_replaced(module, stop):
        yield


def calls_of(modules: Mapping[str, nn.Module], run: Callable[[], Any]) -> list[str]:
    """The modules that `run` calls, by name, in the order of the calls."""
    order = []
    with stops(modules):
        reached = Pass(run)
        while reached.call is not None:
            order.append(reached.call.name)
            reached.resume()
    return order
