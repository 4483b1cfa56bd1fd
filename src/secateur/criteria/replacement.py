"""Replacement: the order in which blocks can leave so that affine maps of the residual stream stand in for them best.

Ours. A refit lets the layers before a removed block take over its part (docs/compensation.md). How well they can is
foretold by a simple stand-in: each missing block is replaced by x -> x + W f(x, t), with one W for all tokens,

    min over W of  E[|y - x - W f|^2 / |y - x|^2] + ridge m |W|^2,    f(x, t) = (x, t x, t, 1),

where x is the stream before the block in the model with stand-ins, y the stream behind the block in the dense model, so
that each also corrects what went wrong before it, and t the timestep, in [-1/2, 1/2]; the fraction is of each tuple's
sums, and the last column of W, the bias, is not pulled. The refitted layers are gated by the timestep too; without t,
blocks that matter at some timesteps only would be kept. Linear stand-ins for blocks are those of ReplaceMe (Shopkhoev
et al. 2025, arXiv 2505.02819); here they only rank, and are not part of the pruned model.

A greedy search removes next the block whose removal, beside those that are gone, moves the prediction least: the
geometric mean over tuples of the relative distance from the dense prediction, as of `deviation`. That is the block's
score. Of the blocks that are left, only those with the lowest distances when last measured are measured again.

B tuples of a micro-batch, P positions of a stream and R chosen ones, C channels, K = 2 C + 2 features.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ..base.console import progress
from ..base.devices import in_float64
from ..base.errors import TrainingError
from ..base.rules import Count, at_least
from ..compensation.gates import tokens
from ..compensation.least_squares import Sums, refit, with_ones
from ..compensation.passes import Pass, stops
from ..compensation.positions import choose_positions, chosen
from ..data import Batch
from ..models.network import example_batch, in_full_precision, inference
from ..models.predict import predict
from ..models.registry import describe
from ..process.base import Process
from ..structure import Structure, head_redirected, pick, returned_tensors, streams_of
from .blocks.measure import BINS, Tuples, block_names, block_scores, draw_tuples, price_of_tuples
from .criterion import Criterion, Memory, Options, Price, ScoringConfig
from .memory import without_data, without_values
from .ranking import Ranking

Affine: TypeAlias = Tensor  # W', (K, C), the row of the bias last
LEAST = 1e-6  # of the size of the stream, which a block that does nothing would otherwise be divided by


@dataclass(frozen=True)
class ReplacementOptions(Options):
    """Options of replacement.

    Attributes:
        candidates: how many blocks are measured at every step of the search, those that moved the prediction least when
            last measured. Of twelve blocks, four find what a search of all finds (docs/benchmarks/blocks.md).
        ridge: strength of the pull of W towards 0, as a share of the mean square of an input.
        rows: largest number of positions (pixels, tokens) used for one map, drawn at random from all tuples.
    """

    candidates: Count = 4
    ridge: Annotated[float, at_least(0)] = 0.01
    rows: Count = 8192


def replacement(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: ReplacementOptions,
) -> Ranking:
    """Scores from the tuples of `ced`: every image once in every bin of timesteps.

    Raises:
        SecateurError: the model has no blocks.
        TrainingError: an output is not finite.
    """
    names = block_names(structure)
    with stand_ins(model, process, batch, structure, config) as found:
        distances = removal_distances(names, found.distance, options.candidates)
    places = {name: place for place, name in enumerate(distances)}  # the search orders those at one distance
    reached = np.array([distances[name] for name in names])
    order = np.array([float(places[name]) for name in names])
    return Ranking(block_scores(names, reached, order))


@contextmanager
def stand_ins(
    model: nn.Module, process: Process, batch: Batch, structure: Structure, config: ScoringConfig
) -> Iterator[StandIns]:
    """Stand-ins for blocks of `model`, which may be asked for distances inside the block; `config` is complete."""
    tuples = list(draw_tuples(process, batch, config))
    with inference(model), in_full_precision(model):
        yield StandIns(model, structure, tuples, config, REPLACEMENT.options_of(config))


def removal_distances(
    names: Sequence[str], distance: Callable[[Sequence[str]], float], candidates: int
) -> dict[str, float]:
    """The distance of the model from the dense one at which each block leaves, from the first to the last; never less
    than the one before."""
    last = dict.fromkeys(names, 0.0)
    found: dict[str, float] = {}
    reached = 0.0
    with progress("blocks removed", len(names)) as advance:
        while last:
            measured = sorted(last, key=lambda name: last[name])[: candidates if found else None]
            for name in measured:
                last[name] = distance([*found, name])
            leaving = min(measured, key=lambda name: last[name])
            reached = max(reached, last.pop(leaving))
            found[leaving] = reached
            advance(1, "")
    return found


class StandIns:
    """The model with affine maps in place of some blocks, fitted as the forward pass reaches them.

    Attributes:
        goals: for every block, micro-batch and stream, the dense stream behind the block at the chosen positions,
            (B, R, C), on the CPU.
        times: t of every tuple, (B,) for each micro-batch.
        dense: the dense predictions, (B, ...) float64 for each micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        tuples: Sequence[Tuples],
        config: ScoringConfig,
        options: ReplacementOptions,
    ) -> None:
        self.model, self.structure, self.tuples, self.config, self.options = model, structure, tuples, config, options
        self._chosen: dict[tuple[str, int, int], Tensor] = {}
        self.goals: dict[str, list[list[Tensor]]] = defaultdict(list)
        with ExitStack() as hooks:
            for name in structure.blocks:
                block = model.get_submodule(name)
                hooks.enter_context(block.register_forward_hook(self._watching(name), prepend=True))  # before masks
            self.dense = [self._prediction(number) for number in range(len(tuples))]
        timesteps = torch.cat([each.timesteps for each in tuples]).cpu().double()
        span = timesteps.max() - timesteps.min()
        between = (timesteps - timesteps.min()) / span.where(span > 0, 1.0) - 0.5
        self.times = between.split([len(each.timesteps) for each in tuples])

    def _watching(self, name: str) -> Any:
        """A hook that adds what the block returns to its goals."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            goals, streams = self.goals[name], returned_tensors(self.structure.blocks[name], output)
            goals.append([self._rows(name, len(goals), stream).cpu() for stream in streams])

        return hook

    def distance(self, removed: Sequence[str]) -> float:
        """The geometric mean over tuples of |prediction without `removed` - prediction| / |prediction|.

        Raises:
            TrainingError: an output is not finite.
        """
        if not removed:
            return 0.0
        blocks = {name: self.model.get_submodule(name) for name in removed}
        without = {name: torch.zeros(1) for name in removed}
        with head_redirected(self.model, self.structure, without), stops(blocks):
            passes = [Pass(lambda number=number: self._prediction(number)) for number in range(len(self.tuples))]  # type: ignore[misc]
            while passes[0].call is not None:
                self._stand_in(passes[0].call.name, passes)
        logs = [_log_distance(each.result, dense) for each, dense in zip(passes, self.dense, strict=True)]
        found = float(torch.cat(logs).mean().exp())
        if not np.isfinite(found):
            raise TrainingError(
                f"the output without {removed[-1]} is not finite: check weights and scheduler, or score in float32"
            )
        return found

    def _stand_in(self, name: str, passes: Sequence[Pass]) -> None:
        """Fit the maps of the block before which all passes wait, and resume them with what the maps return."""
        block = self.structure.blocks[name]
        streams = streams_of(block, self.model.get_submodule(name))
        taken = [pick(streams, each.call.args, each.call.kwargs) for each in passes if each.call is not None]
        maps = [
            self._fit(name, [each[place] for each in taken], [goal[place] for goal in self.goals[name]])
            for place in range(len(streams))
        ]
        for each, given, times in zip(passes, taken, self.times, strict=True):
            moved = tuple(_mapped(stream, affine, times) for stream, affine in zip(given, maps, strict=True))
            each.resume(moved if block.returns else moved[0])

    def _fit(self, name: str, streams: Sequence[Tensor], goals: Sequence[Tensor]) -> Affine:
        """The map of one stream, from all micro-batches."""
        channels = goals[0].shape[-1]
        sums = Sums(2 * channels + 2, channels, streams[0].device)
        for number, (stream, goal) in enumerate(zip(streams, goals, strict=True)):
            x = self._rows(name, number, stream)
            goal = goal.to(x.device)
            error = goal - x
            size = _size(error) + LEAST * _size(goal)
            weight = torch.where(size > 0, 1 / size, 0.0)  # a stream of zeros tells nothing
            rows = [(values * weight).flatten(0, 1) for values in (features(x, self.times[number]), error, goal)]
            sums.add(*rows)
        return refit(sums, self.options.ridge, bias=True)[0]

    def _rows(self, name: str, number: int, stream: Tensor) -> Tensor:
        """The chosen positions of a stream of micro-batch `number`, (B, R, C)."""
        values = tokens(stream)
        key = name, number, values.shape[1]
        if key not in self._chosen:
            first, total = number * self.config.batch_size, sum(len(each.noisy) for each in self.tuples)
            numbers, place = range(first, first + len(values)), list(self.structure.blocks).index(name)
            taken = max(1, self.options.rows // total)
            self._chosen[key] = choose_positions(numbers, values.shape[1], taken, place, self.config.seed)
        return chosen(values, self._chosen[key])

    def _prediction(self, number: int) -> Tensor:
        each = self.tuples[number]
        return in_float64(predict(self.model, each.noisy, each.timesteps, each.conditions))


def features(x_BPC: Tensor, times_B: Tensor) -> Tensor:
    """x, t x, t and 1, (B, P, K)."""
    times = times_B.to(x_BPC).view(-1, 1, 1)
    return with_ones(torch.cat([x_BPC, times * x_BPC, times.expand(-1, x_BPC.shape[1], 1)], dim=-1))


def _size(values_BPC: Tensor) -> Tensor:
    """The root mean square of each tuple's values, (B, 1, 1)."""
    return values_BPC.square().mean((1, 2), keepdim=True).sqrt()


def _mapped(stream: Tensor, affine: Affine, times_B: Tensor) -> Tensor:
    """The stream plus the map of it, in its shape."""
    values = tokens(stream)
    wide = values if values.dtype == torch.float64 else values.float()
    moved = wide + features(wide, times_B) @ affine.to(wide)
    shaped = moved.mT if stream.ndim == 4 else moved
    return shaped.reshape(stream.shape).to(stream.dtype)


def _log_distance(prediction: Tensor, dense: Tensor) -> Tensor:
    """log (|prediction - dense| / |dense|) of each tuple, (B,) float64 on the CPU."""
    tiny = torch.finfo(torch.float64).tiny
    squares = [(values.flatten(1).square().sum(1)).clamp_min(tiny).log() for values in (prediction - dense, dense)]
    return ((squares[0] - squares[1]) / 2).cpu()


def price(
    model: nn.Module, process: Process, structure: Structure, config: ScoringConfig, options: ReplacementOptions
) -> Price:
    """Price of a forward pass for every tuple, of the dense model and at every measurement of the search."""
    blocks = len(structure.blocks)
    measured = blocks + sum(min(options.candidates, left) for left in range(1, blocks))
    return Price((1 + measured) * price_of_tuples(model, process, structure, config, options).passes)


def memory(model: nn.Module, process: Process, config: ScoringConfig, options: ReplacementOptions) -> Memory:
    """Memory while all tuples wait before a block, counted on a copy without data, with the dense streams behind every
    block, the dense predictions, and the sums of a fit."""
    tuples = config.num_images * config.timesteps_of(process)
    sample, conditions = example_batch(model, min(config.batch_size, tuples))
    chosen_rows = max(1, options.rows // tuples)
    structure = describe(model)

    def counted(micro_batches: int) -> tuple[int, int]:
        """The most bytes at a time, and the numbers in the chosen positions of all streams of one tuple."""
        behind: dict[str, int] = {}
        with without_data(model) as (hollow, live):
            blocks = {name: hollow.get_submodule(name) for name in structure.blocks}
            with torch.no_grad(), stops(blocks):
                passes = [_waiting(hollow, process, sample, conditions) for _ in range(micro_batches)]
                while (call := passes[0].call) is not None:
                    given = pick(streams_of(structure.blocks[call.name], blocks[call.name]), call.args, call.kwargs)
                    shapes = [tokens(stream).shape for stream in given]
                    behind[call.name] = sum(min(P, chosen_rows) * C for _, P, C in shapes)
                    fit = max(_fit_bytes(C, len(sample) * min(P, chosen_rows)) for _, P, C in shapes)
                    for each in passes:
                        each.resume()
            return live.peak + fit, sum(behind.values())

    (one, behind), (two, _) = counted(1), counted(2)
    waiting = one + (math.ceil(tuples / len(sample)) - 1) * (two - one)
    predictions = 2 * sample[0].numel() * torch.float64.itemsize
    return Memory(waiting + tuples * (behind * torch.float32.itemsize + predictions))


def _waiting(hollow: nn.Module, process: Process, sample: Tensor, conditions: Mapping[str, Tensor]) -> Pass:
    """A pass of a model without data, with inputs of its own."""
    dtype = next(hollow.parameters()).dtype
    given = without_values({"sample": sample, "conditions": dict(conditions)}, dtype)
    timesteps = process.timesteps(torch.zeros(len(sample)))
    return Pass(lambda: predict(hollow, given["sample"], timesteps, given["conditions"]))


def _fit_bytes(channels: int, rows: int) -> int:
    """Bytes of sums and their factor, and of the rows of a micro-batch."""
    columns = 2 * channels + 2
    sums = torch.float64.itemsize * (2 * columns**2 + 2 * columns * channels)
    return sums + torch.float32.itemsize * rows * (2 * columns + 4 * channels)


REPLACEMENT = Criterion(
    "replacement", ReplacementOptions, replacement, price, ranks="blocks", timesteps=BINS, memory=memory
)
