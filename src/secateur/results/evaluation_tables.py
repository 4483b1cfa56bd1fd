"""An evaluation as tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .numbers import Value
from .table import Table

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .measured import ModelResult

MEBIBYTE = 2**20
SHOWN_FIRST = ("denoising_loss", "fd", "kid", "ssim", "psnr", "mse")


def evaluation_table(evaluation: Evaluation) -> Table:
    """One row per quantity that was measured, one column per model.

    Values have the standard deviation of the measurement; notes say which differences exceed it.
    """
    rows = [(title, key, values) for title, key, values in _rows(evaluation) if any(v is not None for v in values)]
    notes, shown = {}, {}
    for row, (_, key, _) in enumerate(rows):
        for column, (name, model) in enumerate(evaluation.models.items(), start=1):
            if key and (found := evaluation.verdicts(key, name)):
                notes[row, column] = found
            if key in model.estimates:
                shown[row, column] = str(model.estimates[key])
    return Table(("", *evaluation.names), tuple((title, *values) for title, _, values in rows), notes, shown)


def _rows(evaluation: Evaluation) -> list[tuple[str, str, list[Value]]]:
    """Title of each quantity, its key among the estimates if it has one, and its value for every model."""
    models = list(evaluation.models.values())

    def row(title: str, value: Callable[[ModelResult], Value], key: str = "") -> tuple[str, str, list[Value]]:
        return title, key, [value(model) for model in models]

    rows = [
        row("parameters", lambda model: model.parameters),
        row("MACs of one call, one sample", lambda model: model.macs),
        row("weights (MiB)", lambda model: model.weights_bytes / MEBIBYTE),
    ]
    for batch in dict.fromkeys(batch for model in models for batch in model.peak_activation_bytes):
        rows.append(row(f"peak activations, batch {batch} (MiB)", lambda model, b=batch: _peak(model, b)))  # type: ignore[misc]
    for kind in ("", "compiled "):
        prefix = kind.replace(" ", "_")
        for batch in dict.fromkeys(batch for model in models for batch in getattr(model, f"{prefix}latency")):
            times = [getattr(model, f"{prefix}latency").get(batch) for model in models]
            medians: list[Value] = [None if time is None else time.median_ms for time in times]
            rows.append((f"{kind}latency, batch {batch} (ms, median)", f"{prefix}latency_{batch}", medians))
            speeds: list[Value] = [getattr(model, f"{prefix}throughput").get(batch) for model in models]
            rows.append((f"{kind}throughput, batch {batch} (samples/s)", "", speeds))
    timed = {key for _, key, _ in rows}
    keys = [key for key in (*SHOWN_FIRST, *evaluation.metrics) if key in evaluation.metrics and key not in timed]
    rows += [row(_title(evaluation, key), lambda model, k=key: model.value(k), key) for key in dict.fromkeys(keys)]  # type: ignore[misc]
    return rows


def _peak(model: ModelResult, batch: str) -> float | None:
    peak = model.peak_activation_bytes.get(batch)
    return None if peak is None else peak / MEBIBYTE


def _title(evaluation: Evaluation, key: str) -> str:
    """A metric's label, what it is measured against, and its unit."""
    metric = evaluation.metrics[key]
    label = metric.label
    if metric.against == "reference":
        label += f" to {evaluation.reference}, same {evaluation.start}"
    elif key == "fd":
        label += " to real images"
    return f"{label} ({metric.unit})" if metric.unit else label


def comparison_table(evaluation: Evaluation) -> Table:
    """Every pair of models that was compared, with the difference, its 95 % interval and the verdict."""
    rows = tuple(
        (evaluation.metrics[found.metric].label if found.metric in evaluation.metrics else found.metric, found.b,
         found.a, found.difference, found.low, found.high, found.verdict)
        for found in evaluation.comparisons
    )  # fmt: skip
    return Table(("metric", "model", "beside", "difference", "from", "to", "verdict"), rows)
