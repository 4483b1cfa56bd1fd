"""Speed of one network call: latency, throughput and peak memory, eager and compiled."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ...base.errors import is_out_of_memory
from ...base.rules import ONE_OR_MORE, Count, at_least, check_fields
from ...models.network import device_of, example_inputs, inference
from ...models.precision import dtype_of, precision_of
from ...results.measured import Latency, Metric
from ...structure.memory import LiveBytes
from ..estimates import median_estimate
from ..measurement import Measured, OfModels, Subject

if TYPE_CHECKING:
    from ...process.base import Process
    from ..config import EvaluationConfig

WARMUP_ROUNDS = 3
MOST_COMPILED = 1024  # forms of one class of models, whose number torch limits to 8

DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class LatencyOptions:
    """Options of the metric latency.

    Attributes:
        rounds: timed rounds, in each of which every model runs once.
        batch_sizes: batch sizes to time.
        dtype: dtype of the timed calls; None: the models' own.
        compile: also time torch.compile.
    """

    rounds: Annotated[int, at_least(2)] = 20  # one has no uncertainty
    batch_sizes: Annotated[tuple[Count, ...], ONE_OR_MORE] = (1, 32)
    dtype: DtypeName | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        check_fields("evaluation latency", self)


@dataclass(frozen=True)
class Timings:
    """Timings of one model. Mappings are keyed by batch size, as text.

    Attributes:
        latency, compiled_latency: of one call; the latter is empty unless asked for.
        peak_activation_bytes: most bytes alive at once during a call, beyond weights and inputs.
        dtype: of the timed calls and their activations.
        notes: what could not be timed.
    """

    latency: Mapping[str, Latency]
    compiled_latency: Mapping[str, Latency]
    peak_activation_bytes: Mapping[str, int]
    dtype: str
    notes: tuple[str, ...] = ()


def peak_activation_bytes(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Most bytes alive at once during `model(**inputs)`, beyond weights and inputs.

    On CUDA as counted by the allocator; elsewhere as the sum of tensors that operators return, without kernels'
    workspace.
    """
    device = device_of(model)
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        with inference(model):
            model(**inputs)
        return torch.cuda.max_memory_allocated(device) - before
    with inference(model), LiveBytes([*model.state_dict().values(), *inputs.values()]) as live:
        model(**inputs)
    return live.peak


def measure_latency(
    calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = WARMUP_ROUNDS
) -> dict[str, Latency]:
    """Time each call once per round, in turn, so that changes in the machine's load affect all of them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(warmup + rounds):
        for name, call in calls.items():
            synchronize()
            begun = time.perf_counter()
            call()
            synchronize()
            seconds[name].append(time.perf_counter() - begun)
    return {name: _latency(times[warmup:]) for name, times in seconds.items()}


def _latency(seconds: Sequence[float]) -> Latency:
    times_ms = [1000 * value for value in seconds]
    lower, median, upper = (float(value) for value in np.quantile(times_ms, (0.25, 0.5, 0.75)))
    return Latency(median, lower, upper, len(times_ms), tuple(times_ms))


def synchronize() -> None:
    """Wait until the accelerator has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def time_models(models: Mapping[str, nn.Module], options: LatencyOptions) -> dict[str, Timings]:
    """Speed of each model, latencies interleaved; copies are timed if `options` name another dtype.

    A model that does not compile has no `compiled_latency`, and a note that says why. Batch sizes that do not fit into
    memory are left out for all models, with a note.
    """
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    timed = {name: _in_dtype(model, dtype) for name, model in models.items()}
    sizes, rounds = options.batch_sizes, options.rounds
    eager = {batch: found for batch in sizes if (found := _latencies_and_peaks(timed, batch, rounds)) is not None}
    too_large = [f"batch size {batch} was not timed: out of memory" for batch in sizes if batch not in eager]
    compiled: dict[int, dict[str, Latency]] = {}
    failures: dict[str, str] = {}
    if options.compile:
        working = {}
        for name, model in timed.items():
            try:
                working[name] = _compile(model, list(eager))
            except Exception as error:  # a missing compiler, an unsupported operator: of any type
                failures[name] = f"torch.compile failed: {' '.join(str(error).split())[:200]}"
        compiled = {batch: _latencies(timed, working, batch, rounds) for batch in eager}
    return {
        name: Timings(
            latency={str(batch): latencies[name] for batch, (latencies, _) in eager.items()},
            compiled_latency={str(batch): found[name] for batch, found in compiled.items() if name in found},
            peak_activation_bytes={str(batch): peaks[name] for batch, (_, peaks) in eager.items()},
            dtype=precision_of(timed[name]),
            notes=(*too_large, *([failures[name]] if name in failures else [])),
        )
        for name in models
    }


def _in_dtype(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model itself if it has that dtype, else a copy."""
    if dtype is None or dtype_of(model) == dtype:
        return model
    return copy.deepcopy(model).to(dtype)


def _latencies_and_peaks(
    models: Mapping[str, nn.Module], batch: int, rounds: int
) -> tuple[dict[str, Latency], dict[str, int]] | None:
    """Latency and peak activation bytes of each model; None if memory does not suffice for all."""
    try:
        latencies = _latencies(models, models, batch, rounds)
        return latencies, {
            name: peak_activation_bytes(model, example_inputs(model, batch)) for name, model in models.items()
        }
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def _latencies(
    models: Mapping[str, nn.Module], calls: Mapping[str, Callable[..., object]], batch: int, rounds: int
) -> dict[str, Latency]:
    """Latency of each of `calls`, the model of that name or its compiled form."""
    with ExitStack() as stack:
        bound = {}
        for name, call in calls.items():
            stack.enter_context(inference(models[name]))
            bound[name] = functools.partial(call, **example_inputs(models[name], batch))
        return measure_latency(bound, rounds)


def _compile(model: nn.Module, batch_sizes: Sequence[int]) -> Callable[..., object]:
    compiled = torch.compile(model, fullgraph=True, dynamic=False)  # fullgraph: no part runs silently in eager mode
    # Models of one class share what is compiled, up to a limit.
    unlimited = torch._dynamo.config.patch(recompile_limit=MOST_COMPILED, accumulated_recompile_limit=MOST_COMPILED)
    with unlimited, inference(model):
        for batch in batch_sizes:
            compiled(**example_inputs(model, batch))
    return compiled


def measure(subject: Subject) -> dict[str, Measured]:
    """Timings of every model, and the uncertainty of their medians."""
    config = subject.config
    measured = {}
    for name, found in time_models(subject.models, config.latency).items():
        fields = {key: value for key, value in vars(found).items() if key != "notes"}
        estimates = {
            f"{kind}_{batch}": median_estimate(torch.tensor(latency.times_ms), config.bootstrap, config.seed)
            for kind in ("latency", "compiled_latency")
            for batch, latency in fields[kind].items()
        }
        measured[name] = Measured(estimates, fields, found.notes)
    return measured


def describe(subject: Subject) -> dict[str, Metric]:
    """A latency for each batch size."""
    options = subject.config.latency
    kinds = {"latency": "latency"} | ({"compiled_latency": "compiled latency"} if options.compile else {})
    return {
        f"{key}_{batch}": Metric(f"{label}, batch {batch}", "lower", None, "ms")
        for key, label in kinds.items()
        for batch in options.batch_sizes
    }


def passes(config: EvaluationConfig, process: Process) -> float:
    """Every round of every batch size."""
    options = config.latency
    return float((WARMUP_ROUNDS + options.rounds) * sum(options.batch_sizes) * (1 + options.compile))


LATENCY = OfModels(name="latency", gives={}, passes=passes, measure=measure, describe=describe)
