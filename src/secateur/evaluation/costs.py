"""The costs of every model for the evaluation, and how sure their latencies are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..io.manifest import removed_since
from .config import EvaluationConfig
from .estimates import Estimate, median_estimate
from .measured import Measured
from .metrics.efficiency import Efficiency, measure_efficiency


def measure_costs(models: Mapping[str, nn.Module], config: EvaluationConfig) -> dict[str, Measured]:
    """Sizes, MACs, layers and what blocks left of every model; latencies, interleaved, where `config` asks for them."""
    timed = "latency" in config.metrics
    costs = measure_efficiency(
        models,
        rounds=config.latency_rounds,
        batch_sizes=config.latency_batch_sizes if timed else (),
        compile=config.compile and timed,
        dtype=None if config.latency_dtype is None else getattr(torch, config.latency_dtype),
    )
    first = next(iter(models))
    measured = {}
    for name, cost in costs.items():
        removed = removed_since(models[name], models[first])
        fields = vars(cost) | {"removed_blocks": removed}
        notes = fields.pop("notes")
        measured[name] = Measured(fields, _latencies(cost, config), notes)
    return measured


def _latencies(cost: Efficiency, config: EvaluationConfig) -> dict[str, Estimate]:
    return {
        f"{kind}_{batch}": median_estimate(torch.tensor(found.times_ms), config.bootstrap, config.seed)
        for kind in ("latency", "compiled_latency")
        for batch, found in getattr(cost, kind).items()
    }
