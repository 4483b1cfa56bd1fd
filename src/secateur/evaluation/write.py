"""An evaluation as files: numbers for programs, a table for people, samples to look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..files import atomic_file, write_json, write_text

IMAGES_KEPT = 64


def write_evaluation(result: dict[str, Any], folder: str | Path, images: Mapping[str, Tensor] | None = None) -> Path:
    """Write `evaluation.json` and `evaluation.md` of what `evaluate_models` returned; returns the folder.

    With `images`, also the first 64 of each as `samples.safetensors`.
    """
    folder = Path(folder)
    write_text(folder / "evaluation.md", evaluation_table(result))
    if images is not None:
        with atomic_file(folder / "samples.safetensors") as temporary:
            save_file({name: tensor[:IMAGES_KEPT].clone() for name, tensor in images.items()}, temporary)
    write_json(folder / "evaluation.json", result)  # last: where it is, the evaluation is whole
    return folder


def evaluation_table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, one row for each model; a dash where nothing was measured."""
    rows = {name: _row(entry) for name, entry in result["models"].items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [
        f"# Evaluation on {result['data']['name']}",
        "",
        f"SSIM and PSNR compare each image with the one that {result['reference']} draws from the same seed. "
        f"Latencies are medians on {result['environment']['device']}, taken in turn.",
        "",
        "| Model | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(row.get(column, "–") for column in columns) + " |")
    notes = [*result["notes"]]
    for name, entry in result["models"].items():
        notes += [f"{name}: {note}" for note in entry["notes"]]
        found = entry["fidelity"]
        if found and not found["full_rank"]:
            notes.append(f"{name}: {found['metric']} rests on fewer images than its {found['dims']} features")
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def _row(entry: dict[str, Any]) -> dict[str, str]:
    relative = entry["relative"]
    row = {
        "Parameters": f"{_count(entry['parameters'])} ({relative['parameters']:.0%})",
        "MACs": f"{_count(entry['macs'])} ({relative['macs']:.0%})",
    }
    for batch, latency in entry["latency"].items():
        row[f"Latency, batch {batch}"] = f"{latency['median_ms']:.2f} ms ({relative['speedup'][batch]:.2f}x faster)"
    for batch, latency in entry["compiled_latency"].items():
        row[f"Compiled, batch {batch}"] = f"{latency['median_ms']:.2f} ms"
    for batch, peak in entry["peak_activation_bytes"].items():
        row[f"Activations, batch {batch}"] = f"{peak / 2**20:.2f} MiB"
    row["Weights"] = f"{entry['weights_bytes'] / 2**20:.2f} MiB"
    row["Denoising loss"] = _decimal(entry["denoising_loss"]["mean"], 4)
    if entry["consistency"]:
        row["SSIM"] = _decimal(entry["consistency"]["ssim"]["mean"], 3)
        row["PSNR"] = _decimal(entry["consistency"]["psnr"]["mean"], 1, " dB")
    if entry["fidelity"]:
        row[entry["fidelity"]["metric"]] = f"{entry['fidelity']['value']:.3f} ± {entry['fidelity']['std']:.3f}"
    return row


def _decimal(value: float | None, digits: int, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _count(value: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return str(value)
