"""What a model costs: parameters, MACs, latency, throughput and memory."""

from __future__ import annotations

import copy
import functools
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...base.errors import is_out_of_memory
from ...models.network import device_of, example_inputs, inference
from ...results import Latency, Layer
from .layers import count_flops, count_layers

WARMUP_ROUNDS = 3


@dataclass(frozen=True)
class Efficiency:
    """Cost of one model. Dictionaries are keyed by batch size, as text."""

    parameters: int
    macs: int  # of one sample, one network call
    weights_bytes: int
    peak_activation_bytes: dict[str, int]
    latency: dict[str, Latency]
    compiled_latency: dict[str, Latency]  # empty unless asked for
    dtype: str  # of the timed calls and their activations
    layers: tuple[Layer, ...]
    notes: tuple[str, ...]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each shared tensor once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Multiply-accumulates of `model(**inputs)`: convolutions, matrix products and attention, at 2 FLOPs each."""
    return count_flops(model, inputs).get_total_flops() // 2


def weights_bytes(model: nn.Module) -> int:
    """Bytes of the state dict as saved, each shared tensor once."""
    return sum(storage.nbytes() for storage in _storages(model.state_dict().values()).values())


def peak_activation_bytes(model: nn.Module, inputs: Mapping[str, Tensor]) -> int:
    """Most bytes alive at once during `model(**inputs)`, beyond weights and inputs.

    On CUDA by the allocator; elsewhere by the tensors that operators return, without a kernel's own workspace.
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


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it: `live` now, `peak` at most; `known` tensors are free."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes = dict.fromkeys(_storages(known), 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for address, storage in _storages(tree_leaves(output)).items():
            if address not in self._sizes:  # else a view, or in place
                self._sizes[address] = storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, address)
        return output

    def _free(self, address: int) -> None:
        self.live -= self._sizes.pop(address)


def _storages(values: Iterable[Any]) -> dict[int, torch.UntypedStorage]:
    storages = (value.untyped_storage() for value in values if isinstance(value, Tensor))
    return {storage.data_ptr(): storage for storage in storages}


def measure_latency(
    calls: Mapping[str, Callable[[], object]], rounds: int, warmup: int = WARMUP_ROUNDS
) -> dict[str, Latency]:
    """Time each call once a round, in turn, so that a busy or warming machine slows all of them alike."""
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
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def measure_efficiency(
    models: Mapping[str, nn.Module],
    *,
    rounds: int = 20,
    batch_sizes: Sequence[int] = (1, 32),
    compile: bool = False,
    dtype: torch.dtype | None = None,
) -> dict[str, Efficiency]:
    """Cost of each model, latencies interleaved; with `compile`, also those under `torch.compile`.

    With `dtype`, copies in it are timed. A model that does not compile has no `compiled_latency`, and a note that says
    why. Batch sizes that do not fit into memory are left out, of all models, with a note.
    """
    timed = {name: _in_dtype(model, dtype) for name, model in models.items()} if batch_sizes else models
    eager = {batch: found for batch in batch_sizes if (found := _latencies_and_peaks(timed, batch, rounds)) is not None}
    too_large = [f"batch size {batch} was not timed: out of memory" for batch in batch_sizes if batch not in eager]
    compiled: dict[int, dict[str, Latency]] = {}
    failures: dict[str, str] = {}
    if compile:
        working = {}
        for name, model in timed.items():
            try:
                working[name] = _compile(model, list(eager))
            except Exception as error:  # a missing compiler, an unsupported operator: of any type
                failures[name] = f"torch.compile failed: {' '.join(str(error).split())[:200]}"
        compiled = {batch: _latencies(timed, working, batch, rounds) for batch in eager}
    return {
        name: Efficiency(
            parameters=count_parameters(model),
            macs=count_macs(model, example_inputs(model, 1)),
            weights_bytes=weights_bytes(model),
            peak_activation_bytes={str(batch): peaks[name] for batch, (_, peaks) in eager.items()},
            latency={str(batch): latencies[name] for batch, (latencies, _) in eager.items()},
            compiled_latency={str(batch): found[name] for batch, found in compiled.items() if name in found},
            dtype=str(next(timed[name].parameters()).dtype).removeprefix("torch."),
            layers=tuple(count_layers(model, example_inputs(model, 1))),
            notes=(*too_large, *([failures[name]] if name in failures else [])),
        )
        for name, model in models.items()
    }


def _in_dtype(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """The model itself where it has that dtype, else a copy."""
    if dtype is None or next(model.parameters()).dtype == dtype:
        return model
    return copy.deepcopy(model).to(dtype)


def _latencies_and_peaks(
    models: Mapping[str, nn.Module], batch: int, rounds: int
) -> tuple[dict[str, Latency], dict[str, int]] | None:
    """Latency and peak activation bytes of each model; None where memory does not suffice for all."""
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
    compiled = torch.compile(model, fullgraph=True, dynamic=False)  # fullgraph: no silent part in eager mode
    with inference(model):
        for batch in batch_sizes:
            compiled(**example_inputs(model, batch))
    return compiled
