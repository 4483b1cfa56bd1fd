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
class Metric:
    """What a number is: its name for people, which way is better (None: neither), its unit."""

    label: str
    better: str | None = None
    unit: str | None = None


@dataclass(frozen=True)
class Measured:
    """A measured value with its standard deviation and the ends of its 95 % interval, where these are known."""

    value: float
    std: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Layer:
    """What one layer costs."""

    name: str
    kind: str
    weight: tuple[int, ...]
    parameters: int
    macs: int


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
    throughput: Mapping[str, float] = field(default_factory=dict)  # samples per second of one call
    compiled_throughput: Mapping[str, float] = field(default_factory=dict)
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
    estimates: Mapping[str, Measured] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    removed_blocks: tuple[str, ...] = ()  # since the reference, by its names
    classes: tuple[Mapping[str, Any], ...] = ()  # scores of every class of the data


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
    reconstructions: bool = False  # of the data's images, by decoders; else samples
    metrics: Mapping[str, Metric] = field(default_factory=dict)  # what the keys of the models' estimates mean
    config: Mapping[str, Any] = field(default_factory=dict)
    comparisons: tuple[Mapping[str, Any], ...] = ()  # pairs of models: what a metric says of `b` beside `a`

    @property
    def loss(self) -> str:
        """What the loss at a timestep is called."""
        return "reconstruction error" if self.reconstructions else "denoising loss"

    @property
    def start(self) -> str:
        """What is the same for all models in images that are compared one by one."""
        return "latents" if self.reconstructions else "noise"


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
    models = tuple(_model(name, entries[name]) for name in names)
    return Evaluation(
        models=models,
        reference=reference,
        metric=first.get("metric", ""),
        samples=first.get("samples"),
        reference_samples=first.get("reference_samples"),
        device=f"{environment['device']}{threads}" if "device" in environment else "",
        notes=tuple(notes),
        reconstructions=found.get("reconstructions", False),
        metrics=_metrics(found.get("metrics", {}), models, reference, first.get("metric", "")),
        config=found.get("config", {}),
        comparisons=tuple(found.get("comparisons", ())),
    )


def _metrics(
    found: Mapping[str, Any], models: tuple[ModelResult, ...], reference: str, frechet: str
) -> dict[str, Metric]:
    """What each key of the models' estimates means; the file says so, or it is one of those of older files."""
    known = {
        "fd": Metric(frechet, "lower"),
        "ssim": Metric(f"SSIM to {reference}", "higher"),
        "psnr": Metric(f"PSNR to {reference}", "higher", "dB"),
        "mse": Metric(f"MSE to {reference}", "lower"),
        "denoising_loss": Metric("mean denoising loss", "lower"),
        "ftle": Metric("finite-time Lyapunov exponent"),
    }
    described = {
        key: Metric(entry.get("label", key), entry.get("better"), entry.get("unit")) for key, entry in found.items()
    }
    keys = dict.fromkeys(key for model in models for key in model.estimates)
    return {key: described.get(key) or known.get(key) or Metric(key.replace("_", " ")) for key in keys}


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
        throughput=entry.get("throughput") or {},
        compiled_throughput=entry.get("compiled_throughput") or {},
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
        estimates=_estimates(entry, loss, consistency, fidelity, lyapunov),
        layers=tuple(Layer(**{**layer, "weight": tuple(layer["weight"])}) for layer in entry.get("layers", ())),
        removed_blocks=tuple(entry.get("removed_blocks", ())),
        classes=tuple((entry.get("per_class") or {}).get("classes", ())),
    )


def _estimates(
    entry: Mapping[str, Any],
    loss: Mapping[str, Any],
    consistency: Mapping[str, Any],
    fidelity: Mapping[str, Any],
    lyapunov: Mapping[str, Any],
) -> dict[str, Measured]:
    """The finite estimates; those of a file without a table of them, from where older files have each."""
    if "estimates" in entry:
        found = entry["estimates"]
        return {
            key: Measured(value["value"], value.get("std"), value.get("low"), value.get("high"))
            for key, value in found.items()
            if value.get("value") is not None
        }
    older = {
        "fd": (fidelity.get("value"), fidelity.get("std")),
        "denoising_loss": (loss.get("mean"), None),
        **{name: (consistency.get(name, {}).get("mean"), None) for name in ("ssim", "psnr", "mse")},
        "ftle": (lyapunov.get("mean"), None),
    }
    return {key: Measured(value, std) for key, (value, std) in older.items() if value is not None}


def _timings(found: Mapping[str, Mapping[str, float]] | None) -> dict[str, Timing]:
    return {
        batch: Timing(times["median_ms"], times["lower_ms"], times["upper_ms"])
        for batch, times in (found or {}).items()
    }
