"""The predicted cost of a compensation, from a pass of both models on the meta device."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..models.network import example_inputs
from ..models.registry import describe
from ..structure import Cut, Structure, owning_block, remove, stream_blocks
from ..structure.cost import count_repeated_flops, skeleton
from ..structure.known_values import remember, without_memory
from ..structure.repeats import Repeats, left_out, once
from .compensate import MEASURED
from .config import CompensationConfig
from .counterparts import Projection, counterparts, projection
from .gated import AT_ONCE_BYTES, conjugate_flops, exact_flops, exact_is_better
from .normed import STEPS, norms_behind
from .passes import Pass, stops
from .targets import chosen_target, layers_to_refit

FLOAT64 = 2.0  # cost of float64 operations relative to float32
SMALL = 3.0  # cost of operations in many small systems relative to those of one large product


@dataclass(frozen=True)
class LayerPrice:
    """The cost of refitting one layer.

    Attributes:
        rows: number of positions that it is fitted on, over all tuples.
        columns: input features, the bias's included.
        outputs: output features.
        bytes: memory beside the models: sums and factors, or the rows for conjugate gradients.
        flops: operations for sums and solution; those in float64 count twice.
    """

    rows: int
    columns: int
    outputs: int
    bytes: int
    flops: float


@dataclass(frozen=True)
class Price:
    """The cost of a compensation.

    Attributes:
        target: output or stream.
        tuples: calibration tuples.
        layers: by name in the pruned model, in the order of the forward pass.
        left: layers that will not be refitted, and why.
        pruned_passes, dense_passes: forward passes of each model per tuple.
        pass_flops: operations of all passes.
        waiting_bytes: peak bytes of activations of tuples that wait before a layer.
    """

    target: str
    tuples: int
    layers: Mapping[str, LayerPrice]
    left: Mapping[str, str]
    pruned_passes: float
    dense_passes: float
    pass_flops: float
    waiting_bytes: int

    @property
    def flops(self) -> float:
        """Operations of passes and refits."""
        return self.pass_flops + sum(layer.flops for layer in self.layers.values())

    @property
    def bytes(self) -> int:
        """Peak memory beside the weights of both models."""
        return self.waiting_bytes + max((layer.bytes for layer in self.layers.values()), default=0)

    def seconds(self, flops_per_second: float) -> float:
        """Seconds at this speed of float32 matrix products, as found by `measure_speed`."""
        return self.flops / flops_per_second


def price(
    dense: nn.Module, cuts: Sequence[Cut], config: CompensationConfig, inputs: Mapping[str, Any] | None = None
) -> Price:
    """The price of refitting `dense` after `cuts`; `inputs` are those of one tuple, by default of an example.

    Raises:
        ModelError: as `compensate`.
    """
    hollow_dense, hollow = skeleton(dense).eval(), skeleton(dense).eval()
    for cut in cuts:
        remove(hollow, describe(hollow), cut)
    structure, whole = describe(hollow), describe(hollow_dense)
    parts = counterparts(hollow, dense, cuts)
    layers, left = layers_to_refit(hollow, parts)
    target = chosen_target(hollow, config)
    given = dict(inputs or example_inputs(dense, 1))
    kwargs = tree_map_only(Tensor, lambda value: remember(value.to("meta"), value), given)
    with torch.no_grad(), without_memory():
        flops = [count_repeated_flops(*each, kwargs)[""] for each in ((hollow, structure), (hollow_dense, whole))]
        walked, waiting = _walk(hollow, structure, list(layers), kwargs)
        waiting += _walk(hollow_dense, whole, [layer.dense for layer in layers.values()], kwargs)[1]
    fit = _stream_price if target == "stream" else _output_price
    prices = {name: fit(projection(hollow, name), at, config) for name, at in walked.items()}
    passes = _passes(hollow, structure, list(layers), config) if target == "stream" else 1.0
    passes += min(MEASURED / config.num_tuples, 1.0)
    return Price(
        target,
        config.num_tuples,
        prices,
        left,
        passes,
        1.0,
        config.num_tuples * (passes * flops[0] + flops[1]),
        config.num_tuples * waiting,
    )


def measure_speed(device: torch.device | str = "cpu", size: int = 1024) -> float:
    """Floating-point operations a second of a product of two square float32 matrices."""
    matrix = torch.randn(size, size, device=device)
    matrix @ matrix
    begun = time.perf_counter()
    for _ in range(3):
        product = matrix @ matrix
    product[0, 0].item()  # waits for the device
    return 3 * 2 * size**3 / (time.perf_counter() - begun)


@dataclass(frozen=True)
class _Walked:
    """A layer as a pass calls it: its positions for a tuple, and whether a norm follows it at once."""

    positions: int
    normed: bool

    def rows(self, config: CompensationConfig) -> int:
        return config.num_tuples * min(self.positions, config.rows_each)


def _output_price(layer: Projection, at: _Walked, config: CompensationConfig) -> LayerPrice:
    """Half of A's products are skipped, as A is symmetric; its factorization is in float64."""
    rows, columns, outputs = at.rows(config), _columns(layer), len(layer.weight)
    gathered = rows * columns * (columns + 4 * outputs)
    solved = columns**2 * (columns / 3 + 2 * outputs)
    at_once = rows * min(config.batch_size, config.num_tuples) // config.num_tuples
    held = 8 * columns * (2 * columns + 2 * outputs) + 4 * at_once * (2 * columns + 3 * outputs)
    return LayerPrice(rows, columns, outputs, held, gathered + FLOAT64 * solved)


def _stream_price(layer: Projection, at: _Walked, config: CompensationConfig) -> LayerPrice:
    rows, columns, outputs, tuples = at.rows(config), _columns(layer), len(layer.weight), config.num_tuples
    held = 4 * rows * (2 * columns + 6 * outputs)  # parts and whole; the layer's output, errors and the dense stream
    if at.normed:
        held += 4 * rows * (columns + 8 * outputs)  # rows divided by the outputs' sizes; outputs that are tried
    flops = 2.0 * rows * columns**2
    if exact_is_better(tuples, rows, columns, outputs):
        flops += SMALL * exact_flops(tuples, columns, outputs)
        held += (4 * tuples + 12 * min(outputs, max(1, AT_ONCE_BYTES // (8 * columns**2)))) * columns**2
    else:
        flops += conjugate_flops(rows, columns, outputs) + FLOAT64 * columns**3 / 3
        held += 8 * columns * (2 * columns + 6 * outputs)
    steps = 2 * STEPS if at.normed else 1  # in two orders
    return LayerPrice(rows, columns, outputs, held, config.rounds * steps * flops)


def _columns(layer: Projection) -> int:
    return layer.weight[0].numel() + (layer.bias is not None)


def _passes(model: nn.Module, structure: Structure, layers: Sequence[str], config: CompensationConfig) -> float:
    """Every tuple runs through a block once more than there are gates, once per layer in every round, and once to
    continue."""
    blocks = stream_blocks(model, structure)
    held = [owning_block(blocks, name) for name in layers]
    mean = len(held) / max(len(set(held)), 1)
    return (mean + 1) + config.rounds * mean + 1


def _walk(
    model: nn.Module, structure: Structure, names: Sequence[str], kwargs: Mapping[str, Any]
) -> tuple[dict[str, _Walked], int]:
    """Each layer that is called, and the most bytes that wait with it."""

    def walk(found: Repeats) -> tuple[dict[str, _Walked], int]:
        like = {name: found.like(name) for name in names}
        with left_out(model, structure, found):
            layers, most = _walked(model, set(like.values()), kwargs)
        return {name: layers[each] for name, each in like.items() if each in layers}, most

    return once(model, structure, walk)


def _walked(model: nn.Module, names: Collection[str], kwargs: Mapping[str, Any]) -> tuple[dict[str, _Walked], int]:
    positions: dict[str, int] = {}
    most = 0
    layers = {name: projection(model, name) for name in names}
    with stops(layers), norms_behind(model, layers) as norms:
        reached = Pass(partial(model, **kwargs))
        while (call := reached.call) is not None:
            storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in reached.tensors()}
            most = max(most, sum(storage.nbytes() for storage in storages.values()))
            output = call()
            positions.setdefault(call.name, output.numel() // len(layers[call.name].weight))
            reached.resume(output)
    return {name: _Walked(count, name in norms) for name, count in positions.items()}, most
