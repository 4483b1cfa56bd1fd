"""Which channels of a block depend on which, found by one traced pass and its derivatives.

A weighted layer (linear, convolution) mixes channels; operations between two of them (activations, attention products,
norms, reshaping) mostly do not. So every weighted layer's output becomes a leaf of the graph, and the derivative of a
later layer's input with respect to it shows which channels depend on which. Channels that are connected through any
layer are one unit: the halves of a gate, or the queries, keys, values and outputs of a head, in any order within a
fused matrix. Names of classes or modules are not used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...structure.attributes import CONVOLUTIONS
from ...structure.check import draw_weights
from ...structure.streams import first_argument


class Port(NamedTuple):
    """The input ("in") or output ("out") channels of the weighted layer `module`."""

    module: str
    side: str


Channel = tuple[Port, int]


@dataclass(frozen=True)
class Side:
    """A tensor beside the channels: a parameter that is no layer's weight (a norm's gain), or an input of the block.

    `reached` are, for every axis, the entries along it that influence each unit.
    """

    name: str
    is_parameter: bool
    reached: tuple[Mapping[int, frozenset[int]], ...]


@dataclass(frozen=True)
class Influence:
    """The channels of one block.

    Attributes:
        sizes: channels of each port.
        units: sets of connected channels that nothing outside the block reads.
        sides: other tensors that influence them; the keys of `reached` are indices of `units`.
        normalized: parameters of root-mean-square norms over the whole output of a layer, whose statistics did not
            count as influence.
    """

    sizes: Mapping[Port, int]
    units: tuple[frozenset[Channel], ...]
    sides: tuple[Side, ...]
    normalized: frozenset[str]


def is_weighted(module: nn.Module) -> bool:
    """Whether every output channel is a weighted sum of all input channels."""
    return isinstance(module, nn.Linear) or (isinstance(module, CONVOLUTIONS) and module.groups == 1)


def channel_axis(module: nn.Module) -> int:
    """The axis of the channels in what a weighted layer takes and gives."""
    return 1 if isinstance(module, CONVOLUTIONS) else -1


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module divides by the root mean square over the last axis and multiplies by its one parameter."""
    parameters = dict(module.named_parameters())
    weight = parameters.get("weight")
    if set(parameters) != {"weight"} or weight is None or weight.ndim != 1:
        return False
    if not isinstance(getattr(module, "eps", None), float) or is_weighted(module):
        return False
    x = torch.randn(2, 3, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        found = module(x)
    except Exception:  # another module that has an eps
        return False
    expected = _rms(x, weight, module)
    return isinstance(found, Tensor) and found.shape == x.shape and torch.allclose(found, expected, atol=1e-4)


def _rms(x: Tensor, weight: Tensor, module: nn.Module) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.eps).detach() * weight  # type: ignore[operator]


@dataclass
class _Recorded:
    """One call of a block: its leaves and the inputs of its layers."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    leaves: list[tuple[str, Tensor]] = field(default_factory=list)
    readings: list[tuple[str, Tensor]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


def influences(
    model: nn.Module, blocks: Mapping[str, nn.Module], run: Callable[[], object]
) -> Iterator[tuple[str, Influence]]:
    """The influence inside each of `blocks`, by name, as observed in one pass through `model`, made by `run()`.

    No channel may be zero by accident, because of a zero gate or a rectifier with negative inputs only. So weights are
    replaced by random ones, in place, and outputs of layers by noise. Blocks that are not called are left out.
    """
    names = {module: name for name, module in model.named_modules()}
    evidence = {name: _Evidence(name, block, names) for name, block in blocks.items()}
    draw_weights(model, torch.Generator().manual_seed(0))
    calls: dict[str, list[_Recorded]] = defaultdict(list)
    with ExitStack() as stack:
        for name, block in blocks.items():
            stack.enter_context(_recording(block, names, calls[name], evidence[name].normalized))
        with torch.enable_grad():
            run()
    for name in blocks:
        for call in calls.pop(name):
            evidence[name].add(call)
        if evidence[name].sizes:
            yield name, evidence[name].influence()


@contextmanager
def _recording(
    block: nn.Module, names: Mapping[nn.Module, str], calls: list[_Recorded], normalized: set[str]
) -> Iterator[None]:
    active: list[_Recorded] = []
    generator = torch.Generator().manual_seed(1)

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        record = _Recorded()
        active.append(record)

        def leaf(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value  # tuples are positions: all units share them, and they may be changed in place
            value = value.detach().requires_grad_()
            record.inputs[f"input {len(record.inputs)}"] = value
            return value.clone()  # the block may change it in place

        return tuple(leaf(value) for value in args), {key: leaf(value) for key, value in kwargs.items()}

    def end(module: nn.Module, args: Any, output: Any) -> Any:
        record = active.pop()
        record.outputs = [each for each in tree_leaves(output) if isinstance(each, Tensor) and each.requires_grad]
        calls.append(record)
        return tree_map_only(Tensor, Tensor.detach, output)

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_argument(args, kwargs)
        if active and isinstance(x, Tensor) and x.requires_grad:
            active[-1].readings.append((names[module], x))

    def write(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if not active:
            return None
        noise = torch.randn(output.shape, generator=generator).to(output)
        leaf = noise.requires_grad_()
        active[-1].leaves.append((names[module], leaf))
        return leaf.clone()

    def norm(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        x, weight = first_argument(args, kwargs), module.weight
        if not active or not isinstance(weight, Tensor):
            return None
        reaching = _reaching(x, [leaf for _, leaf in active[-1].leaves])
        if not reaching or any(leaf.shape[-1] != len(weight) for leaf in reaching):
            return None  # over a part of a layer's output, such as within heads
        normalized.add(f"{names[module]}.weight")
        return _rms(x, weight, module).to(output.dtype)

    handles = [
        block.register_forward_pre_hook(begin, with_kwargs=True),
        block.register_forward_hook(end),
    ]
    for module in block.modules():
        if is_weighted(module):
            handles += [module.register_forward_pre_hook(read, with_kwargs=True), module.register_forward_hook(write)]
        elif is_rms_norm(module):
            handles.append(module.register_forward_hook(norm, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reaching(x: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    """Those of `leaves` that `x` depends on."""
    if not leaves or not x.requires_grad:
        return []
    found = torch.autograd.grad(x, leaves, torch.randn_like(x), retain_graph=True, allow_unused=True)
    return [leaf for leaf, gradient in zip(leaves, found, strict=True) if gradient is not None and gradient.any()]


class _Sets:
    """Disjoint sets of channels."""

    def __init__(self) -> None:
        self.parent: dict[Channel, Channel] = {}

    def find(self, each: Channel) -> Channel:
        self.parent.setdefault(each, each)
        while self.parent[each] != each:
            self.parent[each] = each = self.parent[self.parent[each]]
        return each

    def join(self, left: Channel, right: Channel) -> None:
        self.parent[self.find(left)] = self.find(right)


class _Evidence:
    """The evidence from calls of one block."""

    def __init__(self, name: str, block: nn.Module, names: Mapping[nn.Module, str]) -> None:
        self.modules = {names[module]: module for module in block.modules()}
        weighted = {each for each, module in self.modules.items() if is_weighted(module)}
        self.parameters = {
            f"{name}.{each}": parameter
            for each, parameter in block.named_parameters()
            if f"{name}.{each}".rpartition(".")[0] not in weighted and parameter.requires_grad
        }
        self.sets, self.fixed, self.normalized = _Sets(), set[Channel](), set[str]()
        self.sizes: dict[Port, int] = {}
        self.touched: dict[str, list[dict[Channel, set[int]]]] = {}

    def add(self, call: _Recorded) -> None:
        """Add one call of the block."""
        leaves = [leaf for _, leaf in call.leaves]
        owners = {id(leaf): owner for owner, leaf in call.leaves}
        for owner, leaf in call.leaves:
            self.sizes[Port(owner, "out")] = leaf.shape[channel_axis(self.modules[owner])]
        for reader, x in call.readings:
            self.sizes[Port(reader, "in")] = x.shape[channel_axis(self.modules[reader])]
        for output in call.outputs:
            for leaf in _reaching(output, leaves):
                port = Port(owners[id(leaf)], "out")
                self.fixed |= {(port, channel) for channel in range(self.sizes[port])}
        for reader, x in call.readings:
            near = [(owners[id(leaf)], leaf) for leaf in _reaching(x, leaves)]
            if near:
                self._read(reader, x, near, {**call.inputs, **self.parameters})

    def _read(self, reader: str, x: Tensor, near: list[tuple[str, Tensor]], sides: Mapping[str, Tensor]) -> None:
        """Join each channel of `x`, which `reader` reads, with those of the leaves `near` it that influence it."""
        axis, port = channel_axis(self.modules[reader]), Port(reader, "in")
        wanted = [leaf for _, leaf in near] + list(sides.values())
        weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).to(x)
        for channel in range(self.sizes[port]):
            one = torch.zeros_like(x)
            one.select(axis, channel).copy_(weights.select(axis, channel))
            gradients = torch.autograd.grad(x, wanted, one, retain_graph=True, allow_unused=True)
            here: Channel = (port, channel)
            whole = True
            for (owner, _), gradient in zip(near, gradients, strict=False):
                entries = [] if gradient is None else _entries(gradient, channel_axis(self.modules[owner]))
                for entry in entries:
                    self.sets.join((Port(owner, "out"), entry), here)
                whole &= len(entries) == self.sizes[Port(owner, "out")]
            for name, gradient in zip(sides, gradients[len(near) :], strict=True):
                if gradient is not None:
                    along = self.touched.setdefault(name, [defaultdict(set) for _ in range(gradient.ndim)])
                    for each in range(gradient.ndim):
                        along[each][here] |= set(_entries(gradient, each))
            if whole:  # all channels are connected already
                for other in range(self.sizes[port]):
                    self.sets.join((port, other), here)
                return

    def influence(self) -> Influence:
        """The resulting influence."""
        fixed_roots = {self.sets.find(channel) for channel in self.fixed}
        groups: dict[Channel, set[Channel]] = defaultdict(set)
        for channel in list(self.sets.parent):
            groups[self.sets.find(channel)].add(channel)
        units = tuple(frozenset(members) for root, members in groups.items() if root not in fixed_roots)
        unit_of = {channel: index for index, members in enumerate(units) for channel in members}
        sides = []
        for name, along in self.touched.items():
            reached = []
            for entries_by_channel in along:
                entries: dict[int, set[int]] = defaultdict(set)
                for channel, found in entries_by_channel.items():
                    if channel in unit_of:
                        entries[unit_of[channel]] |= found
                reached.append({unit: frozenset(found) for unit, found in entries.items()})
            sides.append(Side(name, name in self.parameters, tuple(reached)))
        return Influence(self.sizes, units, tuple(sides), frozenset(self.normalized))


def _entries(gradient: Tensor, axis: int) -> list[int]:
    """The entries along `axis` where `gradient` is not zero throughout."""
    found = gradient.nan_to_num(0).movedim(axis, 0).reshape(gradient.shape[axis], -1).ne(0).any(1)
    return found.nonzero().flatten().tolist()
