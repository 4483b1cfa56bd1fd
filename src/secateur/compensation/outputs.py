"""Fitting every layer to its own output in the dense model, from its input in the pruned one.

So each corrects the errors of all layers before it, which are refitted already. Both models run side by side; every
micro-batch waits before each layer, so that each model takes only one pass in total.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from ..base.distributed import same_in_all_processes, sum_over_processes
from ..results.compensation import Reader
from ..structure import first_argument
from .config import CompensationConfig
from .counterparts import Layer, Projection, projection
from .fitting import Fitting
from .least_squares import Sums, refit, with_ones
from .passes import Parking, at_hand, begin, calls_of, lead_on, stops
from .positions import by_position, change_weights, choose_positions, chosen, input_rows, weights_by_row
from .tuples import Tuples


def refit_to_outputs(
    pruned: nn.Module,
    dense: nn.Module,
    layers: Mapping[str, Layer],
    tuples: Sequence[Tuples],
    config: CompensationConfig,
    fitting: Fitting,
) -> list[tuple[Tensor, Tensor]]:
    """Refit `layers` of `pruned`, by name; returns the outputs of both models for every micro-batch."""
    modules = {name: projection(pruned, name) for name in layers}
    once = _called_once(modules, tuples[0], pruned, fitting)
    here = {name: modules[name] for name in once}
    there = {layers[name].dense: projection(dense, layers[name].dense) for name in once}
    with stops(here), stops(there):
        parking = Parking() if config.offload else None
        students = [begin(parking, each.run(pruned)) for each in tuples]
        teachers = [begin(parking, each.run(dense)) for each in tuples]
        for index, name in enumerate(once):
            if fitting.fitted_before({name: modules[name]}):
                lead_on(parking, teachers)
            else:
                begun = time.monotonic()
                fit = OutputFit(layers[name], modules[name], index, config)
                for student, teacher, each in zip(students, teachers, tuples, strict=True):
                    with at_hand(parking, student, teacher):
                        assert student.call is not None
                        assert teacher.call is not None
                        output = teacher.call()
                        fit.add(first_argument(student.call.args, student.call.kwargs), output, each, student.call)
                        teacher.resume(output)
                change, reader = fit.solve(begun)
                change_weights(modules[name], same_in_all_processes(change))
                fitting.keep({name: modules[name]}, {name: reader})
            lead_on(parking, students)
    return [(student.result, teacher.result) for student, teacher in zip(students, teachers, strict=True)]


def _called_once(modules: Mapping[str, nn.Module], first: Tuples, model: nn.Module, fitting: Fitting) -> list[str]:
    """The layers that a pass calls once, in its order."""
    calls = Counter(calls_of(modules, first.run(model)))
    for name in modules:
        if calls[name] != 1:
            fitting.leave(name, f"a pass of the model calls it {calls[name]} times")
    return [name for name, count in calls.items() if count == 1]


class OutputFit:
    """The refit of one layer to its own dense output; the layer's index seeds the choice of positions."""

    def __init__(self, layer: Layer, module: Projection, index: int, config: CompensationConfig) -> None:
        self.layer, self.module, self.index, self.config = layer, module, index, config
        self.bias, self.is_image = module.bias is not None, isinstance(module, nn.Conv2d)
        self.sums = Sums(module.weight[0].numel() + self.bias, len(module.weight), module.weight.device)

    def add(self, x: Tensor, dense: Tensor, tuples: Tuples, call: Callable[[], Tensor]) -> None:
        """Add a micro-batch: the layer's input, the dense layer's output, and a function that calls the layer.

        A layer that lost no input is called like the dense one, so that on equal inputs the error is exactly zero. For
        others, the output is computed at the chosen positions only.
        """
        target_BPM = by_position(self.layer.target(dense, 1 if self.is_image else dense.ndim - 1), self.is_image)
        at = choose_positions(tuples.numbers, target_BPM.shape[1], self.config.rows_each, self.index, self.config.seed)
        rows = input_rows(self.module, x, at)
        rows = with_ones(rows) if self.bias else rows
        if self.layer.lost:
            present = rows @ weights_by_row(self.module).to(rows)
        else:
            present = chosen(by_position(call(), self.is_image), at)
        target = chosen(target_BPM, at)
        self.sums.add(*(values.flatten(0, 1) for values in (rows, target - present, target)))

    def solve(self, begun: float) -> tuple[Tensor, Reader]:
        """The change (K, M) of the weights, the bias's row last, and its errors."""
        sums = self.sums
        for total in (sums.inputs, sums.cross, sums.scalars):
            sum_over_processes(total)
        change, after = refit(sums, self.config.ridge, self.bias)
        before, left = relative(sums.error, sums.target), relative(after, sums.target)
        return change, Reader(sums.rows, len(change), before, left, time.monotonic() - begun, "output")


def relative(error: float, size: float) -> float | None:
    """An error as a share of the target's size."""
    return error / size if size else None
