"""Fitting layers that add to a residual stream to the stream itself: to what they must add to match the dense one.

So each block corrects all errors before it, and the block before a removed one takes over its part. For a surviving
block i whose next survivor is j, the goal is the dense model's stream before j; for the last survivor, the stream after
the dense model's last block.

As a function of the output p of one of its projections, with the others fixed, a block's result is s + g f(p), in one
of the forms of `gates`. The gates are found by calling the block on streams of zeros with p set to ones and to zeros,
so any block of these forms can be refitted, however it computes its gates.

B tuples of a micro-batch, P positions of its streams (those of several streams one after another), C channels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.devices import in_float64, where_float64
from ..base.distributed import same_in_all_processes, sum_over_processes
from ..models.registry import describe
from ..results.compensation import Reader
from ..structure import Block, first_argument, owning_block, pick, returned_tensors, stream_blocks, streams_of
from .config import CompensationConfig
from .counterparts import Counterparts, Layer, Projection, projection
from .fitting import Fitting
from .gates import FORMS, Form, Gate, joined, written_alike
from .least_squares import with_ones
from .normed import norms_behind, scales_only
from .outputs import OutputFit, relative
from .passes import Call, Parking, Pass, at_hand, begin, calls_of, lead_on, stops
from .positions import by_position, change_weights, choose_positions, chosen, input_rows
from .tuples import Tuples


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
        parking = Parking() if config.offload else None
        students = [begin(parking, each.run(pruned)) for each in tuples]
        teachers = [begin(parking, each.run(dense)) for each in tuples]
        for teacher in teachers:
            with at_hand(parking, teacher):
                while teacher.call is not None and teacher.call.name not in begins:
                    teacher.resume()
        for index, name in enumerate(survivors):
            own = {layer: layers[layer] for layer in layers if owning_block(here, layer) == name}
            modules = {layer: projection(pruned, layer) for layer in own}
            watched = {layer.dense: projection(dense, layer.dense) for layer in own.values()}
            goals, targets = [], []
            for teacher in teachers:
                with at_hand(parking, teacher):
                    goal, outputs = _goal(teacher, there, outside, begins, watched)
                goals.append(goal)
                targets.append(outputs)
            if own:
                block = here[name], inside[name], own, modules
                _BlockRefit(*block, students, goals, targets, tuples, config, fitting, parking, index)()
            lead_on(parking, students)
    return [(student.result, teacher.result) for student, teacher in zip(students, teachers, strict=True)]


def _goal(
    teacher: Pass,
    blocks: Mapping[str, Block],
    modules: Mapping[str, nn.Module],
    begins: set[str],
    watched: Mapping[str, nn.Module],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The dense stream before the next survivor, (B, P, C), and the outputs of the `watched` layers until there.

    Blocks of another stream may run in between, as those of a text do beside those of an image.
    """
    assert teacher.call is not None
    begun = teacher.call.name
    goal: Tensor | None = None
    outputs: dict[str, Tensor] = {}
    while teacher.call is not None and (goal is None or teacher.call.name not in begins):
        call = teacher.call
        block = blocks[call.name]
        with _observed(watched) as seen:
            output = call()
        outputs |= {name: found for name, (_, found) in seen.items()}
        if goal is None or _same_list(begun, call.name) or torch.equal(_given(call, block, modules[call.name]), goal):
            goal = joined(returned_tensors(block, output))
        teacher.resume(output)
    assert goal is not None
    return goal, outputs


def _same_list(one: str, other: str) -> bool:
    return one.rpartition(".")[0] == other.rpartition(".")[0]


def _given(call: Call, block: Block, module: nn.Module) -> Tensor:
    """The streams that the block is called with."""
    return joined(pick(streams_of(block, module), call.args, call.kwargs))


class Change(NamedTuple):
    """What is added to a layer's weights (K, M), the bias's row last, and the factors (M,) of those of its norm."""

    weights: Tensor
    factors: Tensor


@dataclass(frozen=True)
class _BlockRefit:
    """The refit of one surviving block; `students` has one pass for each micro-batch.

    Attributes:
        layers: the block's layers to refit.
        modules: the same, by the same names.
        students: passes of the pruned model that wait before the block.
        goals: the dense stream that the block's output should match.
        targets: outputs of the layers in the dense model, by their dense names.
    """

    block: Block
    module: nn.Module
    layers: Mapping[str, Layer]
    modules: Mapping[str, Projection]
    students: Sequence[Pass]
    goals: Sequence[Tensor]
    targets: Sequence[Mapping[str, Tensor]]
    tuples: Sequence[Tuples]
    config: CompensationConfig
    fitting: Fitting
    parking: Parking | None
    index: int

    def __call__(self) -> None:
        """Refit the layers in the order in which the block calls them, in `config.rounds` rounds."""
        first = self.students[0]
        with (
            at_hand(self.parking, first),
            _observed(self.modules) as seen,
            norms_behind(self.module, self.modules) as met,
        ):
            _call_of(first)()
        norms = {name: norm for name, norm in met.items() if scales_only(norm, seen[name][1])}
        for name in self.layers:
            if name not in seen:
                self.fitting.leave(name, "a pass of the model does not call it")
        fitted = {name: nn.ModuleList([self.modules[name], *([norms[name]] if name in norms else [])]) for name in seen}
        if self.fitting.fitted_before(fitted):
            return
        each = written_alike([self._gates(call) for call, *_ in self._micro_batches()])
        gates = {name: [batch[name] for batch in each] for name in seen}
        readers: dict[str, Reader] = {}
        for _ in range(self.config.rounds):
            for place, name in enumerate(seen):
                change, reader = self._refit(name, 64 * self.index + place, gates[name], norms.get(name))
                change_weights(self.modules[name], same_in_all_processes(change.weights))
                if name in norms:
                    factors = same_in_all_processes(change.factors)
                    _scale(norms[name], factors)
                    gates[name] = [gate.times(factors) for gate in gates[name]]
                readers[name] = _since(readers[name], reader) if name in readers else reader
        self.fitting.keep(fitted, readers)

    def _refit(self, name: str, index: int, gates: Sequence[Gate], norm: nn.Module | None) -> tuple[Change, Reader]:
        """The change of the layer's weights, and its errors."""
        begun = time.monotonic()
        form = self._form_of(name, gates)
        if form is None:
            return self._to_output(name, index, begun)
        return self._to_stream(name, index, gates, form, norm is not None, begun)

    def _micro_batches(self) -> Iterator[tuple[Call, Tensor, Mapping[str, Tensor], Tuples]]:
        """The call of the block, its goal, the targets of its layers, and the tuples."""
        for student, goal, targets, tuples in zip(self.students, self.goals, self.targets, self.tuples, strict=True):
            with at_hand(self.parking, student):
                yield _call_of(student), goal, targets, tuples

    def _to_output(self, name: str, index: int, begun: float) -> tuple[Change, Reader]:
        """Refit the layer to its own dense output, if the stream depends on it in another way."""
        layer, module = self.layers[name], self.modules[name]
        fit = OutputFit(layer, module, index, self.config)
        for call, _, outputs, tuples in self._micro_batches():
            with _observed({name: module}) as seen:
                call()
            given, present = seen[name]
            fit.add(given, outputs[layer.dense], tuples, lambda present=present: present)  # type: ignore[misc]
        change, reader = fit.solve(begun)
        return Change(change, change.new_ones(change.shape[1])), reader

    def _to_stream(
        self, name: str, index: int, gates: Sequence[Gate], form: Form, rescale: bool, begun: float
    ) -> tuple[Change, Reader]:
        module = self.modules[name]
        bias, is_image = module.bias is not None, isinstance(module, nn.Conv2d)
        xs, outputs, errors, size = [], [], [], 0.0
        for gate, (call, goal, _, tuples) in zip(gates, self._micro_batches(), strict=True):
            with _observed({name: module}) as seen:
                output = joined(returned_tensors(self.block, call()))
            wanted = gate.positions(goal)
            at = choose_positions(tuples.numbers, wanted.shape[1], self.config.rows_each, index, self.config.seed)
            given, present = seen[name]
            x = input_rows(module, given, at)
            xs.append(with_ones(x) if bias else x)
            outputs.append(chosen(by_position(present, is_image), at))
            errors.append(chosen(gate.positions(goal - output), at))
            size += float(in_float64(chosen(wanted, at)).square().sum())
        x_IRK, output_IRM, error_IRM = _padded(xs), _padded(outputs), _padded(errors)
        gate_IM = torch.cat([gate.values for gate in gates]).to(x_IRK)
        ridge = self.config.ridge
        change, factors, left = form.change(
            x_IRK, output_IRM, gate_IM, error_IRM, ridge, bias, rescale, sum_over_processes
        )
        squares = [float(in_float64(values).square().sum()) for values in (error_IRM, left)]
        counts = torch.tensor([*squares, size, sum(x[..., 0].numel() for x in xs)], dtype=torch.float64)
        counts = counts.to(where_float64(x_IRK.device))
        before, after, wanted_square, rows = sum_over_processes(counts).tolist()
        share = relative(before, wanted_square), relative(after, wanted_square)
        reader = Reader(int(rows), x_IRK.shape[2], *share, time.monotonic() - begun, "stream")
        return Change(change, factors), reader

    def _gates(self, call: Call) -> dict[str, Gate]:
        """The gate of each layer's output: the block's result for ones minus that for zeros."""
        empty = _without_streams(call, self.block, self.module)

        def returned_for(ones: str | None) -> list[Tensor]:
            with _replaced(self.modules, lambda name, output: torch.full_like(output, float(name == ones))):
                return [each for each in returned_tensors(self.block, empty()) if each is not None]

        nothing = returned_for(None)
        return {
            name: Gate.of([one - none for one, none in zip(returned_for(name), nothing, strict=True)])
            for name in self.modules
        }

    def _form_of(self, name: str, gates: Sequence[Gate]) -> Form | None:
        """The form of the stream in the layer's output, tested on the first micro-batch with a gate."""
        tested = next((number for number, gate in enumerate(gates) if gate.values.any()), 0)
        first, gate = self.students[tested], gates[tested]
        with at_hand(self.parking, first), _observed(self.modules) as seen:
            whole = joined(returned_tensors(self.block, _call_of(first)()))

        def put(layer: str, _: Tensor) -> Tensor:
            held = seen[layer][1]
            return torch.zeros_like(held) if layer == name else held

        with at_hand(self.parking, first), _replaced(self.modules, put):
            without = joined(returned_tensors(self.block, _call_of(first)()))
        output = by_position(seen[name][1], isinstance(self.modules[name], nn.Conv2d))
        holds = [gate.explains(whole, without, output, form) for form in FORMS]
        agreed = same_in_all_processes(torch.tensor(holds, dtype=torch.int64, device=whole.device))
        return next((form for form, held in zip(FORMS, agreed.tolist(), strict=True) if held), None)


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows (B, R, K) of all micro-batches, (I, R, K); zeros, which change no sum, stand for those that one lacks."""
    most = max(each.shape[1] for each in rows)
    return torch.cat([F.pad(each, (0, 0, 0, most - each.shape[1])) for each in rows])


def _since(first: Reader, last: Reader) -> Reader:
    """The combined result of a layer's refits."""
    return replace(last, before=first.before, seconds=(first.seconds or 0) + (last.seconds or 0))


def _call_of(student: Pass) -> Call:
    assert student.call is not None
    return student.call


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
    """Collect the first argument and the output of `modules` in calls inside the with-block, in order."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def watch(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: seen.__setitem__(name, (first_argument(args, kwargs), output))

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(watch(name), with_kwargs=True))
        yield seen


def _scale(norm: nn.Module, factors_M: Tensor) -> None:
    weight = norm.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(weight * factors_M)


@contextmanager
def _replaced(modules: Mapping[str, nn.Module], put: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Let `modules` return `put(name, output)` inside the with-block."""

    def replace(name: str) -> Callable[..., Tensor]:
        return lambda module, args, output: put(name, output)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(replace(name)))
        yield
