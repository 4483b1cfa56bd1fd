"""Tables of a run: values for CSV, the same values rounded for people in Markdown and HTML."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..base.units import format_count
from ..results.evaluation import Evaluation, Layer, ModelResult
from .classes import ClassScore
from .layers import Pair
from .verdicts import Verdict, verdicts

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Column names and rows of values; `notes` are remarks on cells, by row and column, for people only."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: Mapping[tuple[int, int], tuple[Verdict, ...]] = field(default_factory=dict)

    def text(self) -> list[list[str]]:
        """The rows as people read them."""
        return [[format_value(value) for value in row] for row in self.rows]

    def to_markdown(self) -> str:
        """A Markdown table; all columns but the first are aligned to the right."""
        cells = self.text()
        for (row, column), notes in self.notes.items():
            cells[row][column] += f" ({', '.join(note.text for note in notes)})"
        lines = [self.columns, [":--", *["--:"] * (len(self.columns) - 1)], *cells]
        return "".join("| " + " | ".join(map(_markdown_cell, line)) + " |\n" for line in lines)

    def to_csv(self) -> str:
        """Comma-separated values at full precision; empty where nothing was measured."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()


def format_value(value: Value) -> str:
    """Large counts with K, M, G or T, other numbers with three digits, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return format_count(value) if abs(value) >= 100_000 else str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{value:.3g}"


def _markdown_cell(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def ranking_table(ranking: Mapping[str, Any], cut: Mapping[str, Any] | None = None) -> Table:
    """Every dim: units, lowest, mean and highest score, and the units that `cut` removes."""
    cuts = (cut or {}).get("dims", {})
    rows = []
    for name, scores in ranking["dims"].items():
        removed = cuts[name]["units"] - cuts[name]["kept"] if name in cuts else None
        spread = (min(scores), sum(scores) / len(scores), max(scores)) if scores else (None, None, None)
        rows.append((name, len(scores), *spread, removed))
    return Table(("dim", "units", "lowest", "mean", "highest", "removed"), tuple(rows))


EFFECTS = {
    "rank": "rank",
    "rank from": "rank_low",
    "rank to": "rank_high",
    "direction": "direction",
    "output error": "output_error",
    "loss change": "loss_change",
    "cosine": "cosine",
}


def block_table(ranking: Mapping[str, Any], cut: Mapping[str, Any] | None = None) -> Table:
    """Every ranked block, its score, what dropping it does if that was measured, and whether `cut` removes it."""
    removed = (cut or {}).get("removed_blocks", [])
    effects = (ranking.get("block_report") or {}).get("blocks", {})
    shown = EFFECTS if effects else {}
    rows = tuple(
        (name, score, *[effects[name][key] for key in shown.values()], "yes" if name in removed else "")
        for name, score in ranking["blocks"].items()
    )
    return Table(("block", "score", *shown, "removed"), rows)


def correlation_table(ranking: Mapping[str, Any]) -> Table:
    """Rank correlation of the block scores with each other score that was measured beside them."""
    rows = tuple(ranking["block_report"]["correlations"].items())
    return Table((f"{ranking['criterion']} against", "rank correlation"), rows)


def cut_table(cut: Mapping[str, Any]) -> Table:
    """Every dim: units before and after, channels of a unit, and the share that stays."""
    rows = tuple(
        (name, dim["units"], dim["kept"], dim.get("width", 1), 100 * dim["kept"] / dim["units"])
        for name, dim in cut["dims"].items()
    )
    return Table(("dim", "before", "after", "channels per unit", "kept %"), rows)


STAGE = {
    "stage": "stage",
    "step": "step",
    "selected": "selected",
    "MACs": "macs",
    "energy": "energy",
    "gradient norm": "gradient_norm",
    "calibration loss": "loss",
    "seconds": "seconds",
}


def stage_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """Every stage of progressive pruning; only the columns that some stage has a value for."""
    shown = {title: key for title, key in STAGE.items() if any(key in stage for stage in stages)}
    return Table(tuple(shown), tuple(tuple(stage.get(key) for key in shown.values()) for stage in stages))


CANDIDATE = {
    "blocks gone": "count",
    "MACs saved (%)": "saved",
    "log NTK condition": "ntk",
    "ZiCo": "zico",
    "loss / present": "guard",
    "score": "score",
}


def decision_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """Every candidate of every stage of adaptive pruning, what was measured of it, and what was chosen."""
    rows = []
    for stage in stages:
        for candidate in stage["candidates"]:
            values = [candidate.get(key) for key in CANDIDATE.values()]
            values[1] = None if values[1] is None else 100 * values[1]
            chosen = candidate["count"] == stage["chosen"]
            rows.append((stage["stage"], stage["step"], *values, "yes" if chosen else "",
                         ", ".join(stage["removed"]) if chosen else ""))  # fmt: skip
    return Table(("stage", "step", *CANDIDATE, "chosen", "removed"), tuple(rows))


def evaluation_table(evaluation: Evaluation) -> Table:
    """One row per quantity that was measured, one column per model; notes say which differences exceed their
    uncertainty."""
    models = evaluation.models
    rows = {title: values for title, _, values in _rows(evaluation) if any(value is not None for value in values)}
    keys = {title: key for title, key, _ in _rows(evaluation) if key}
    notes = {
        (row, column): found
        for row, title in enumerate(rows)
        for column, model in enumerate(models, start=1)
        if title in keys and (found := verdicts(evaluation, keys[title], model.name))
    }
    return Table(
        ("", *(model.name for model in models)), tuple((title, *values) for title, values in rows.items()), notes
    )


def _rows(evaluation: Evaluation) -> list[tuple[str, str, list[Value]]]:
    """Title of each quantity, its key among the estimates if it has one, and its value of every model."""
    models, reference = evaluation.models, evaluation.reference
    rows: list[tuple[str, str, list[Value]]] = [
        ("parameters", "", [model.parameters for model in models]),
        ("MACs of one call, one sample", "", [model.macs for model in models]),
        ("weights (MiB)", "", [_mebibytes(model.weights_bytes) for model in models]),
    ]
    for batch in _batches(models, "peak_bytes"):
        peaks: list[Value] = [_mebibytes(model.peak_bytes.get(batch)) for model in models]
        rows.append((f"peak activations, batch {batch} (MiB)", "", peaks))
    for compiled in ("", "compiled "):
        prefix = compiled.strip() + "_" * bool(compiled)
        for batch in _batches(models, f"{prefix}latency"):
            timings = [getattr(model, f"{prefix}latency").get(batch) for model in models]
            medians: list[Value] = [timing and timing.median_ms for timing in timings]
            rows.append((f"{compiled}latency, batch {batch} (ms, median)", f"{prefix}latency_{batch}", medians))
        for batch in _batches(models, f"{prefix}throughput"):
            samples: list[Value] = [getattr(model, f"{prefix}throughput").get(batch) for model in models]
            rows.append((f"{compiled}throughput, batch {batch} (samples/s)", "", samples))
    rows += [
        (f"mean {evaluation.loss}", "denoising_loss", [model.loss for model in models]),
        (f"{evaluation.metric} to real images", "fd", [model.frechet for model in models]),
        (f"{evaluation.metric}, bootstrap deviation", "", [model.frechet_std for model in models]),
        (f"SSIM to {reference}, same {evaluation.start}", "ssim", [model.ssim for model in models]),
        (f"PSNR to {reference}, same {evaluation.start} (dB)", "psnr", [model.psnr for model in models]),
        (f"MSE to {reference}, same {evaluation.start}", "mse", [model.mse for model in models]),
        ("finite-time Lyapunov exponent", "ftle", [model.ftle for model in models]),
        ("finite-time Lyapunov exponent, deviation", "", [model.ftle_std for model in models]),
    ]
    shown = {key for _, key, _ in rows}
    rows += [
        (
            f"{metric.label}{f' ({metric.unit})' if metric.unit else ''}",
            key,
            [_estimate(model, key) for model in models],
        )
        for key, metric in evaluation.metrics.items()
        if key not in shown
    ]
    return rows


def comparison_rows(evaluation: Evaluation) -> Table:
    """Every pair of models that was compared, with the difference, its 95 % interval and the verdict."""
    labels = {key: metric.label for key, metric in evaluation.metrics.items()}
    rows = tuple(
        (labels.get(found["metric"], found["metric"]), found["b"], found["a"],
         *[found.get(key) for key in ("difference", "low", "high")], found["verdict"])
        for found in evaluation.comparisons
    )  # fmt: skip
    return Table(("metric", "model", "beside", "difference", "from", "to", "verdict"), rows)


CLASS_SCORES = ("precision", "recall", "density", "coverage", "diversity")


def class_table(scores: Sequence[ClassScore]) -> Table:
    """Every score of every class, one line for each model."""
    rows = tuple(
        (found.name, model, row.get("samples"), row.get("real"), *[row.get(score) for score in CLASS_SCORES])
        for found in scores
        for model, row in found.models.items()
    )
    return Table(("class", "model", "samples", "real images", *CLASS_SCORES), rows)


def layer_table(pairs: Sequence[Pair]) -> Table:
    """Every layer: shape of its weight, parameters and MACs before and after."""
    rows = tuple(
        (before.name, before.kind, _shape(before), _shape(after), before.parameters, after.parameters, before.macs,
         after.macs)
        for before, after in pairs
    )  # fmt: skip
    columns = ("layer", "kind", "weight before", "after", "parameters before", "after", "MACs before", "after")
    return Table(columns, rows)


def _shape(layer: Layer) -> str:
    return "×".join(map(str, layer.weight)) or "–"


def _estimate(model: ModelResult, key: str) -> float | None:
    return model.estimates[key].value if key in model.estimates else None


def _mebibytes(value: int | None) -> float | None:
    return None if value is None else value / 2**20


def _batches(models: Sequence[ModelResult], attribute: str) -> list[str]:
    return list(dict.fromkeys(batch for model in models for batch in getattr(model, attribute)))
