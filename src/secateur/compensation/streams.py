"""Layers that add to a residual stream aim at the stream itself: at what they must add so that it meets the dense one.

So each block makes good whatever is wrong before it, and the hole that a removed block leaves is filled by the block
before the hole. For a surviving block i whose next survivor is j, the goal is the stream of the dense model before j;
behind the last survivor, that behind the dense model's last block.

What a block makes of the output p of one of its projections, with the others held, is s + g p: the stream, and a gate
for each image and channel. The gates are read off the block itself, by calling it on streams of zeros with p set to
ones and to zeros, so any block of this form is refitted, whatever computes its gates.

B tuples of a micro-batch, P positions of its streams (those of several streams one after another), C channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ..base.distributed import same_in_all_processes, sum_over_processes
from ..models.registry import describe
from ..results.compensation import Reader
from ..structure import Block, Structure, handed_on, pick, streams_of
from .config import CompensationConfig
from .counterparts import Counterparts, Layer, Projection, projection
from .fitting import Fitting, change_weights
from .gated import gated_change
from .least_squares import with_ones
from .outputs import OutputFit, relative
from .passes import Call, Pass, calls_of, stops
from .positions import by_position, choose_positions, chosen, input_rows
from .tuples import Tuples

AFFINE = 1e-3  # |output - (s + g p)| to |g p| that is still rounding; half precision gets more
HALF_AFFINE = 5e-2


def has_streams(model: nn.Module, structure: Structure) -> bool:
    """Whether every reader of a dim stands in a block and writes a width that stays."""
    blocks = stream_blocks(model, structure)
    pieces = [piece for dim in structure.dims.values() for piece in dim.slices]
    readers = {piece.module for piece in pieces if piece.role == "in"}
    writers = {piece.module for piece in pieces if piece.axis == 0 and piece.parameter.endswith(".weight")}
    return bool(blocks) and all(owner(blocks, name) and name not in writers for name in readers)


def stream_blocks(model: nn.Module, structure: Structure) -> dict[str, Block]:
    """The blocks of `structure`, and the others in the lists of listed ones, which may not leave (SD3's last)."""
    blocks = dict(structure.blocks)
    for name, block in structure.blocks.items():
        if block.listed:
            parent = name.rpartition(".")[0]
            for index, _ in model.get_submodule(parent).named_children():
                blocks.setdefault(f"{parent}.{index}", Block(f"{parent}.{index}", True, block.returns))
    return blocks


def owner(blocks: Mapping[str, Block], name: str) -> str | None:
    """The block that holds the module `name`."""
    while name and name not in blocks:
        name = name.rpartition(".")[0]
    return name or None


def refit_to_streams(
    pruned: nn.Module,
    dense: nn.Module,
    parts: Counterparts,
    layers: Mapping[str, Layer],
    tuples: Sequence[Tuples],
    config: CompensationConfig,
    fitting: Fitting,
) -> list[tuple[Tensor, Tensor]]:
    """Refit `layers` of `pruned`, by name; returns the outputs of both models for every micro-batch."""
    here, there = (stream_blocks(model, describe(model)) for model in (pruned, dense))
    inside, outside = (
        {name: model.get_submodule(name) for name in of} for model, of in ((pruned, here), (dense, there))
    )
    survivors = calls_of(inside, tuples[0].run(pruned))
    begins = {parts.dense_names[name] for name in survivors}  # dense blocks before which both models are compared
    with stops(inside), stops(outside):
        students = [Pass(each.run(pruned)) for each in tuples]
        teachers = [Pass(each.run(dense)) for each in tuples]
        for teacher in teachers:
            while teacher.call is not None and teacher.call.name not in begins:
                teacher.resume()
        for index, name in enumerate(survivors):
            own = {layer: layers[layer] for layer in layers if owner(here, layer) == name}
            modules = {layer: projection(pruned, layer) for layer in own}
            watched = {layer.dense: projection(dense, layer.dense) for layer in own.values()}
            goals, targets = zip(*(_goal(teacher, there, begins, watched) for teacher in teachers), strict=True)
            calls = [student.call for student in students if student.call is not None]
            if own:
                block = here[name], inside[name], own, modules
                _BlockRefit(*block, calls, goals, targets, tuples, config, fitting, index)()
            for student in students:
                student.resume()
    return [(student.result, teacher.result) for student, teacher in zip(students, teachers, strict=True)]


def _goal(
    teacher: Pass, blocks: Mapping[str, Block], begins: set[str], watched: Mapping[str, nn.Module]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The dense stream before the next survivor, (B, P, C), and the outputs of the `watched` layers on the way."""
    goal: Tensor | None = None
    outputs: dict[str, Tensor] = {}
    while teacher.call is not None and (goal is None or teacher.call.name not in begins):
        call = teacher.call
        with _observed(watched) as seen:
            output = call()
        outputs |= {name: found for name, (_, found) in seen.items()}
        goal = joined(handed_on(blocks[call.name], output))
        teacher.resume(output)
    assert goal is not None
    return goal, outputs


@dataclass(frozen=True)
class _BlockRefit:
    """The refit of one surviving block, in as many micro-batches as there are `calls`.

    Attributes:
        layers: the block's, to be refitted.
        modules: the same, by the same names.
        calls: of the block.
        goals: the dense stream that should be behind the block.
        targets: outputs of the layers in the dense model, by their dense names.
    """

    block: Block
    module: nn.Module
    layers: Mapping[str, Layer]
    modules: Mapping[str, Projection]
    calls: Sequence[Call]
    goals: Sequence[Tensor]
    targets: Sequence[Mapping[str, Tensor]]
    tuples: Sequence[Tuples]
    config: CompensationConfig
    fitting: Fitting
    index: int

    def __call__(self) -> None:
        """Refit the layers in the order in which the block calls them."""
        with _observed(self.modules) as seen:
            self.calls[0]()
        for name in self.layers:
            if name not in seen:
                self.fitting.leave(name, "a pass of the model does not call it")
        for place, name in enumerate(seen):
            if self.fitting.fitted_before(name, self.modules[name]):
                continue
            begun = time.monotonic()
            gates = [self._gate(call, name) for call in self.calls]
            position = 64 * self.index + place
            if not self._is_affine(name, gates[0]):
                self.fitting.fit(name, self.modules[name], *self._to_output(name, position, begun))
                continue
            if self.layers[name].lost:
                change_weights(self.modules[name], self._to_output(name, position, begun)[0])
            self.fitting.fit(name, self.modules[name], *self._to_stream(name, position, gates, begun))

    def _to_output(self, name: str, index: int, begun: float) -> tuple[Tensor, Reader]:
        """The refit of the layer to its own dense output: the start of the stream's, or all where that has no form."""
        layer, module = self.layers[name], self.modules[name]
        fit = OutputFit(layer, module, index, self.config)
        for call, outputs, tuples in zip(self.calls, self.targets, self.tuples, strict=True):
            with _observed({name: module}) as seen:
                call()
            fit.add(*seen[name], outputs[layer.dense], tuples)
        return fit.solve(begun)

    def _to_stream(self, name: str, index: int, gates: Sequence[Gate], begun: float) -> tuple[Tensor, Reader]:
        module = self.modules[name]
        bias = module.bias is not None
        xs, errors, size = [], [], 0.0
        for call, goal, gate, tuples in zip(self.calls, self.goals, gates, self.tuples, strict=True):
            with _observed({name: module}) as seen:
                output = joined(handed_on(self.block, call()))
            wanted = gate.positions(goal)
            at = choose_positions(tuples.numbers, wanted.shape[1], index, self.config)
            x = input_rows(module, seen[name][0], at)
            xs.append(with_ones(x) if bias else x)
            errors.append(chosen(gate.positions(goal - output), at))
            size += float(chosen(wanted, at).double().square().sum())
        x_IRK, error_IRM = torch.cat(xs), torch.cat(errors)
        gate_IM = torch.cat([gate.values for gate in gates]).to(x_IRK)
        change = gated_change(x_IRK, gate_IM, error_IRM, self.config.ridge, bias, sum_over_processes)
        left = error_IRM - gate_IM[:, None] * (x_IRK @ change.to(x_IRK))
        squares = [float(values.double().square().sum()) for values in (error_IRM, left)]
        counts = torch.tensor([*squares, size, x_IRK[..., 0].numel()], dtype=torch.float64, device=x_IRK.device)
        before, after, wanted_square, rows = sum_over_processes(counts).tolist()
        share = relative(before, wanted_square), relative(after, wanted_square)
        return change, Reader(int(rows), x_IRK.shape[2], *share, time.monotonic() - begun)

    def _gate(self, call: Call, name: str) -> Gate:
        """The gate of the layer's output: what the block hands on for ones, less what it does for zeros."""
        empty = _without_streams(call, self.block, self.module)
        handed = []
        for fill in (1.0, 0.0):
            filled = {key: fill * (key == name) for key in self.modules}
            with _replaced(self.modules, partial(_full, filled)):
                handed.append([each for each in handed_on(self.block, empty()) if each is not None])
        return Gate.of([ones - zeros for ones, zeros in zip(*handed, strict=True)])

    def _is_affine(self, name: str, gate: Gate) -> bool:
        """Whether the stream is s + g p of the layer's output p, by its change from p = 0 in the first micro-batch."""
        with _observed(self.modules) as seen:
            whole = joined(handed_on(self.block, self.calls[0]()))
        with _replaced(self.modules, lambda key, _: torch.zeros_like(seen[key][1]) if key == name else seen[key][1]):
            without = joined(handed_on(self.block, self.calls[0]()))
        output = by_position(seen[name][1], isinstance(self.modules[name], nn.Conv2d))
        change = gate.positions(whole - without)
        fits = change.shape == output.shape
        if fits:
            expected = gate.values[:, None] * output
            rounding = AFFINE if whole.dtype in (torch.float32, torch.float64) else HALF_AFFINE
            fits = bool((change - expected).norm() <= rounding * expected.norm() + 1e-6 * whole.norm())
        return bool(same_in_all_processes(torch.tensor(fits, dtype=torch.int64, device=whole.device)))


@dataclass(frozen=True)
class Gate:
    """A gate for each image and channel, (B, C), and the positions of the joined streams that it writes."""

    values: Tensor
    written: tuple[tuple[int, int], ...]  # first and last position but one of each stream

    @staticmethod
    def of(moved: Sequence[Tensor]) -> Gate:
        """The gate by how much every stream moved, (B, P, C) each, for an output of ones."""
        written, start, values = [], 0, None
        for stream in map(tokens, moved):
            if stream.any():
                written.append((start, start + stream.shape[1]))
                values = stream[:, 0] if values is None else values
            start += stream.shape[1]
        return Gate(tokens(moved[0])[:, 0] if values is None else values, tuple(written))

    def positions(self, streams_BPC: Tensor) -> Tensor:
        """The written positions of the joined streams; none where the gate is zero everywhere."""
        if not self.written:
            return streams_BPC[:, :0]
        return torch.cat([streams_BPC[:, start:end] for start, end in self.written], dim=1)


def tokens(stream: Tensor) -> Tensor:
    """A stream as (B, P, C)."""
    return by_position(stream, is_image=stream.ndim == 4)


def joined(streams: Sequence[Tensor | None]) -> Tensor:
    """The positions of all streams, one after another: (B, P, C)."""
    return torch.cat([tokens(stream) for stream in streams if stream is not None], dim=1)


def _full(values: Mapping[str, float], name: str, output: Tensor) -> Tensor:
    return torch.full_like(output, values[name])


def _without_streams(call: Call, block: Block, module: nn.Module) -> Call:
    """The call with zeros for its streams."""
    args, kwargs = list(call.args), dict(call.kwargs)
    streams = streams_of(block, module)
    for stream, value in zip(streams, pick(streams, args, kwargs), strict=True):
        if stream.position < len(args):
            args[stream.position] = torch.zeros_like(value)
        else:
            kwargs[stream.name] = torch.zeros_like(value)
    return Call(call.name, call.forward, tuple(args), kwargs)


@contextmanager
def _observed(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Collect first argument and output of `modules` in a call inside of the block, in the order of the calls."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda module, args, output: seen.__setitem__(name, (args[0], output))

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(watch(name)))
        yield seen


@contextmanager
def _replaced(modules: Mapping[str, nn.Module], put: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Inside of the block, `modules` return `put(name, output)`."""

    def replace(name: str) -> Callable[..., Tensor]:
        return lambda module, args, output: put(name, output)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(replace(name)))
        yield
