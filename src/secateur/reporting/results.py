"""What an evaluation measured, read from the JSON that `evaluation.write_evaluation` writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MODEL_ORDER = ("dense", "pruned", "recovered")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median and quartiles."""

    median_ms: float
    lower_ms: float
    upper_ms: float


@dataclass(frozen=True)
class ModelResult:
    """What was measured of one model; None or empty where nothing was."""

    name: str
    parameters: int | None = None
    macs: int | None = None
    weights_bytes: int | None = None
    peak_bytes: Mapping[str, int] = field(default_factory=dict)  # by batch size, as are the latencies
    latency: Mapping[str, Timing] = field(default_factory=dict)
    compiled_latency: Mapping[str, Timing] = field(default_factory=dict)
    timesteps: tuple[float, ...] = ()
    losses: tuple[float | None, ...] = ()  # None where the loss is not finite
    loss: float | None = None
    ssim: float | None = None
    psnr: float | None = None
    mse: float | None = None
    frechet: float | None = None
    frechet_std: float | None = None
    ftle: float | None = None
    ftle_std: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """All models, the reference first, and what the numbers rest on."""

    models: tuple[ModelResult, ...] = ()
    reference: str = "dense"
    metric: str = ""  # of the Fréchet distance: FID, or FD[digits-features]
    samples: int | None = None
    reference_samples: int | None = None
    device: str = ""
    notes: tuple[str, ...] = ()


def read_evaluation(found: Mapping[str, Any]) -> Evaluation:
    """The evaluation in `found`, the content of `evaluation.json`; empty when that is."""
    if not found:
        return Evaluation()
    entries = found["models"]
    reference = found.get("reference", next(iter(entries)))
    order = {name: place for place, name in enumerate((reference, *MODEL_ORDER))}
    names = sorted(entries, key=lambda name: order.get(name, len(order)))
    fidelities = {name: entries[name]["fidelity"] for name in names if entries[name].get("fidelity")}
    first: Mapping[str, Any] = next(iter(fidelities.values()), {})
    notes = [*found.get("notes", [])]
    notes += [f"{name}: {note}" for name in names for note in entries[name].get("notes", [])]
    notes += [
        f"{name}: {value['metric']} rests on fewer images than its {value['dims']} features, which biases it strongly"
        for name, value in fidelities.items()
        if not value.get("full_rank", True)
    ]
    environment = found.get("environment", {})
    threads = f", {environment['threads']} thread(s)" if "threads" in environment else ""
    return Evaluation(
        models=tuple(_model(name, entries[name]) for name in names),
        reference=reference,
        metric=first.get("metric", ""),
        samples=first.get("samples"),
        reference_samples=first.get("reference_samples"),
        device=f"{environment['device']}{threads}" if "device" in environment else "",
        notes=tuple(notes),
    )


def _model(name: str, entry: Mapping[str, Any]) -> ModelResult:
    loss = entry.get("denoising_loss") or {}
    consistency = entry.get("consistency") or {}
    fidelity = entry.get("fidelity") or {}
    lyapunov = entry.get("ftle") or {}
    return ModelResult(
        name=name,
        parameters=entry.get("parameters"),
        macs=entry.get("macs"),
        weights_bytes=entry.get("weights_bytes"),
        peak_bytes=entry.get("peak_activation_bytes") or {},
        latency=_timings(entry.get("latency")),
        compiled_latency=_timings(entry.get("compiled_latency")),
        timesteps=tuple(loss.get("timesteps", ())),
        losses=tuple(loss.get("losses", ())),
        loss=loss.get("mean"),
        ssim=consistency.get("ssim", {}).get("mean"),
        psnr=consistency.get("psnr", {}).get("mean"),
        mse=consistency.get("mse", {}).get("mean"),
        frechet=fidelity.get("value"),
        frechet_std=fidelity.get("std"),
        ftle=lyapunov.get("mean"),
        ftle_std=lyapunov.get("std"),
    )


def _timings(found: Mapping[str, Mapping[str, float]] | None) -> dict[str, Timing]:
    return {
        batch: Timing(times["median_ms"], times["lower_ms"], times["upper_ms"])
        for batch, times in (found or {}).items()
    }
