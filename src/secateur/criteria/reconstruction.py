"""Reconstruction: the error that remains after a unit is removed and the layers that read it are refitted optimally.

Optimal Brain Surgeon (Hassibi & Stork 1993) for groups of columns, layer by layer, as in OBC (Frantar & Alistarh 2022,
arXiv 2208.11580) and ZipLM (Kurtic et al. 2023, arXiv 2302.04089). If a layer y = W x + b loses its input columns U and
the others are refitted, its objective rises by at least

    tr(W_U [(H^-1)_UU]^-1 W_U'),    H = E[x x'] + ridge m I0,    m the mean of E[x_k^2] over the features k,

with a column of ones in x for the bias, and I0 the identity without the entry of that column. The objective is that of
`compensation`: E||y - W' x - b'||^2 + ridge m ||W' - W||^2. A unit's score is the sum of these rises over the layers
that read it, each divided by E||y||^2, so that scores of different layers are comparable. Inputs are the dense model's.

A block's score is the output error without it, without a refit: E|output without it - output|^2 / E|output|^2.

N rows, K columns (with that of ones), M outputs; u columns of a unit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeGuard

import torch
from torch import Tensor, nn

from ..base.console import progress
from ..base.devices import in_float64, where_float64
from ..base.errors import ModelError, TrainingError
from ..base.rules import Count, at_least
from ..base.shards import reshard, whole
from ..compensation.least_squares import mean_square, with_ones
from ..compensation.positions import by_position, choose_positions, chosen, input_rows, weights_by_row
from ..data import Batch
from ..models.network import inference
from ..models.predict import predict
from ..process.base import Process
from ..structure import Structure, first_argument
from .blocks.measure import BINS, draw_tuples, measure_blocks, price_of_drops, price_of_tuples
from .criterion import Criterion, Options, Price, ScoringConfig
from .ranking import Ranking

INSTEAD = "exclude that width from the cut, or rank by another criterion"
MEMORY = 2**30  # bytes of E[x x'] held at a time; if there are more readers, further passes follow


@dataclass(frozen=True)
class ReconstructionOptions(Options):
    """Options of reconstruction.

    Attributes:
        ridge: strength of the pull towards the present weights, as a share of the mean square of an input.
        rows: largest number of positions (pixels, tokens) used for one layer, drawn at random from all tuples.
    """

    ridge: Annotated[float, at_least(0)] = 0.01
    rows: Count = 24_576


@dataclass
class Reader:
    """A layer that reads a dim, with sums over rows of its input and output; `place` seeds the choice of rows."""

    layer: nn.Linear | nn.Conv2d
    place: int
    inputs: Tensor = field(init=False)  # of x x' (K, K)
    size: float = 0.0  # of |y|^2
    rows: int = 0

    def __post_init__(self) -> None:
        columns = columns_of(self.layer)
        self.inputs = torch.zeros(columns, columns, dtype=torch.float64, device=where_float64(self.layer.weight.device))

    def add(self, x_NK: Tensor, y_NM: Tensor) -> None:
        """Add rows; `x_NK` without the column of ones."""
        x = x_NK if self.layer.bias is None else with_ones(x_NK)
        self.inputs += (x.T @ x).to(self.inputs)
        self.size += in_float64(y_NM).square().sum().item()
        self.rows += len(x)

    def rises(self, columns: Tensor, ridge: float) -> Tensor:
        """The rise of the objective without each unit, whose `columns` (units, u) are given; (units,) float64.

        Raises:
            TrainingError: there is no ridge, and inputs are linearly dependent.
        """
        weight_KM = in_float64(whole(weights_by_row(self.layer).detach()))
        hessian = self.inputs / self.rows
        bias = self.layer.bias is not None
        features = len(hessian) - bias
        hessian.diagonal()[:features] += ridge * mean_square(hessian.diagonal(), bias)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if failed:
            raise TrainingError("inputs of a layer depend on each other linearly: give --scoring.options.ridge above 0")
        inverse = torch.cholesky_inverse(factor)
        blocks = inverse[columns[:, :, None], columns[:, None, :]]  # (units, u, u)
        leaving = weight_KM[columns]  # (units, u, M)
        return (torch.linalg.solve(blocks, leaving) * leaving).sum((1, 2)) / (self.size / self.rows or 1.0)


def reconstruction(
    model: nn.Module,
    process: Process,
    batch: Batch,
    structure: Structure,
    config: ScoringConfig,
    options: ReconstructionOptions,
) -> Ranking:
    """Scores from the tuples of `ced`: every image once in every bin of timesteps.

    Raises:
        ModelError: as `unit_columns`; or the model calls no layer that reads a dim.
        TrainingError: an output is not finite; or there is no ridge, and inputs are linearly dependent.
    """
    columns = unit_columns(model, structure)
    places = {name: place for place, name in enumerate(columns)}
    scores = {name: torch.zeros(dim.size, dtype=torch.float64) for name, dim in structure.dims.items()}
    unread = set(scores)
    for names in groups_of(model, columns):
        readers = {name: Reader(_layer(model, name), places[name]) for name in names}
        read_inputs(model, process, batch, list(readers.values()), config, options.rows)
        reshard(model)  # then each layer is gathered in its turn
        called = {name: reader for name, reader in readers.items() if reader.rows}
        for name, reader in called.items():
            for dim, units in columns[name].items():
                scores[dim] += reader.rises(units.to(reader.inputs.device), options.ridge).cpu()
                unread.discard(dim)
    if unread:
        raise ModelError(
            f"reconstruction cannot score {min(unread)}: the model calls no layer that reads it; {INSTEAD}"
        )
    if structure.blocks:
        sums = measure_blocks(model, process, batch, structure, config, ced_output="prediction")
        errors = sums.output_error().mean(-1)
        scores |= {name: torch.tensor([error]) for name, error in zip(sums.names, errors, strict=True)}
    return Ranking(scores)


def read_inputs(
    model: nn.Module,
    process: Process,
    batch: Batch,
    readers: Sequence[Reader],
    config: ScoringConfig,
    rows: int,
) -> None:
    """Add the rows of all tuples to `readers`, at most `rows` for each."""
    total = config.timesteps_of(process) * len(batch.sample)
    rows_each = max(1, rows // total)
    numbers: tuple[int, ...] = ()

    def watch(reader: Reader) -> Any:
        is_image = isinstance(reader.layer, nn.Conv2d)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            y_BPM = by_position(output, is_image)
            at = choose_positions(numbers, y_BPM.shape[1], rows_each, reader.place, config.seed)
            reader.add(
                input_rows(reader.layer, first_argument(args, kwargs), at).flatten(0, 1),
                chosen(y_BPM, at).flatten(0, 1),
            )

        return hook

    with ExitStack() as hooks, inference(model), progress("inputs of layers", total) as advance:
        for reader in readers:
            hooks.enter_context(reader.layer.register_forward_hook(watch(reader), with_kwargs=True))
        for tuples in draw_tuples(process, batch, config):
            first = numbers[-1] + 1 if numbers else 0
            numbers = tuple(range(first, first + len(tuples.noisy)))
            predict(model, tuples.noisy, tuples.timesteps, tuples.conditions)
            advance(len(numbers), "")


def unit_columns(model: nn.Module, structure: Structure) -> dict[str, dict[str, Tensor]]:
    """For each layer that reads a dim, by name, the columns of each of the dim's units, (units, u).

    Raises:
        ModelError: such a layer is not `in_rows`.
    """
    found: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for dim in structure.dims.values():
        for piece in dim.slices:
            if piece.role != "in":
                continue
            layer = model.get_submodule(piece.module)
            if not in_rows(layer):
                raise ModelError(
                    f"reconstruction cannot score {dim.name}: {piece.module}, which reads it, is neither linear nor a "
                    f"2D convolution of one group that pads with a number of zeros; {INSTEAD}"
                )
            channels = (piece.offset + torch.arange(dim.size * dim.width_of(piece))).reshape(dim.size, 1, -1)
            pixels = torch.arange(math.prod(layer.weight.shape[2:])) * layer.weight.shape[1]  # as in `input_rows`
            found[piece.module][dim.name].append((pixels[:, None] + channels).flatten(1))
    return {layer: {dim: torch.cat(parts, 1) for dim, parts in dims.items()} for layer, dims in found.items()}


def in_rows(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether `layer` is a matrix product on rows of its input, as `input_rows` reads them."""
    if not isinstance(layer, nn.Conv2d):
        return isinstance(layer, nn.Linear)
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def columns_of(layer: nn.Linear | nn.Conv2d) -> int:
    """K."""
    return layer.weight.shape[1:].numel() + (layer.bias is not None)


def groups_of(model: nn.Module, names: Mapping[str, Any]) -> Iterator[list[str]]:
    """The layers `names` in groups whose sums fit into `MEMORY`."""
    group: list[str] = []
    held = 0
    for name in names:
        needed = 8 * columns_of(_layer(model, name)) ** 2
        if group and held + needed > MEMORY:
            yield group
            group, held = [], 0
        group.append(name)
        held += needed
    if group:
        yield group


def price(
    model: nn.Module, process: Process, structure: Structure, config: ScoringConfig, options: ReconstructionOptions
) -> Price:
    """Price of a forward pass for every tuple and group of layers, and of dropping each block."""
    asked = (model, process, structure, config, options)
    groups = len(list(groups_of(model, unit_columns(model, structure))))
    dropping = price_of_drops(*asked).passes if structure.blocks else 0.0
    return Price(groups * price_of_tuples(*asked).passes + dropping)


def _layer(model: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


RECONSTRUCTION = Criterion("reconstruction", ReconstructionOptions, reconstruction, price, timesteps=BINS)
