"""What a run folder holds, as plain values; whatever is absent is empty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..base.errors import SecateurError, require
from ..base.files import read_json
from ..results.evaluation import MODEL_ORDER, Evaluation, read_evaluation

FORMAT = 1  # of evaluation.json


@dataclass(frozen=True)
class Run:
    """The parts of a run folder that are there."""

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    ranking: Mapping[str, Any] = field(default_factory=dict)
    cut: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[Mapping[str, Any]] = ()
    records: Sequence[Mapping[str, float]] = ()
    evaluation: Evaluation = field(default_factory=Evaluation)
    images: Mapping[str, Tensor] = field(default_factory=dict)
    real: Tensor | None = None
    class_labels: Tensor | None = None


def read_run(folder: str | Path) -> Run:
    """Read the run in `folder`.

    Raises:
        SecateurError: there is no run, or one of its files is damaged, or of another version.
    """
    folder = Path(folder)
    parts = {name: _json_if_there(folder / f"{name}.json") for name in ("config", "ranking", "cut")}
    evaluation = _evaluation(folder / "evaluation" / "evaluation.json")
    stages, records = (_read_lines(folder / "recovery" / f"{name}.jsonl") for name in ("stages", "log"))
    if not (parts["ranking"] or parts["cut"] or evaluation or stages or records):
        raise SecateurError(f"{folder} holds no run to report; give the output folder of a secateur command")
    tensors = _read_samples(folder / "evaluation" / "samples.safetensors")
    real, labels = tensors.pop("real", None), tensors.pop("class_labels", None)
    images = {name: tensors[name] for name in sorted(tensors, key=_model_order)}
    return Run(
        folder, **parts, stages=stages, records=records, evaluation=read_evaluation(evaluation),
        images=images, real=real, class_labels=labels,
    )  # fmt: skip


def _json_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _evaluation(path: Path) -> dict[str, Any]:
    found = _json_if_there(path)
    if not found:
        return {}
    version = found.get("format", FORMAT)
    require(version == FORMAT, f"{path} has format {version}, this secateur reads {FORMAT}; use the one that wrote it")
    require(bool(found.get("models")), f"{path} names no models; remove it and evaluate again")
    return found


def _model_order(name: str) -> tuple[int, str]:
    return (MODEL_ORDER.index(name) if name in MODEL_ORDER else len(MODEL_ORDER)), name


def _read_lines(path: Path) -> tuple[dict[str, Any], ...]:
    """The whole lines: a run that was killed may leave half a line at the end."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    try:
        return tuple(json.loads(line) for line in lines if line.endswith("}"))
    except ValueError as error:
        raise SecateurError(f"{path} is not readable JSON lines: {error}") from error


def _read_samples(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path) if path.exists() else {}
    except (SafetensorError, OSError) as error:
        raise SecateurError(f"{path} is not a readable safetensors file: {error}") from error
