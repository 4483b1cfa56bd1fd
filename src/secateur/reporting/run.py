"""The contents of a run folder as typed results; whatever is absent is None or empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..base.errors import SecateurError, first_line
from ..results import (
    MODEL_ORDER,
    Compensation,
    CutResult,
    Decisions,
    Evaluation,
    QualitySearch,
    Ranking,
    Recorded,
    Recovery,
    read_decisions,
    read_recovery,
    read_result,
)
from ..results.run_settings import RunSettings, read_settings

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """The results of a run; those that it does not have are None or empty.

    Attributes:
        folder: of the run, or where its report is written.
        config: the command and its settings.
        ranking, cut, compensation, decisions, recovery, evaluation: results of its stages.
        images: samples of each model, (N, C, H, W) in [-1, 1], from the same noise.
        real: images of the data.
        class_labels: of these samples, (N,).
        quality: the sizes tried for a quality target.
        recorded: the teacher's book that recovery read.
        validation: samples drawn during training, (N, C, H, W) in [-1, 1], by step.
    """

    folder: Path
    config: RunSettings = field(default_factory=RunSettings)
    ranking: Ranking | None = None
    cut: CutResult | None = None
    compensation: Compensation | None = None
    decisions: Decisions = field(default_factory=Decisions)
    recovery: Recovery = field(default_factory=Recovery)
    evaluation: Evaluation | None = None
    images: Mapping[str, Tensor] = field(default_factory=dict)
    real: Tensor | None = None
    class_labels: Tensor | None = None
    quality: QualitySearch | None = None
    recorded: Recorded | None = None
    validation: Mapping[int, Tensor] = field(default_factory=dict)


def read_run(folder: str | Path) -> Run:
    """Read the run in `folder`.

    Raises:
        SecateurError: there is no run, or one of its files is damaged; the message names file and field.
    """
    folder = Path(folder)
    config = read_settings(folder)
    ranking = _if_there(folder / "ranking.json", lambda path: read_result(Ranking, path))
    cut = _if_there(folder / "cut.json", lambda path: read_result(CutResult, path))
    quality = _if_there(folder / "quality.json", lambda path: read_result(QualitySearch, path))
    recorded = _if_there(folder / "recorded.json", lambda path: read_result(Recorded, path))
    compensation = _if_there(folder / "compensation.json", lambda path: read_result(Compensation, path))
    decisions = _if_there(folder / "recovery" / "stages.jsonl", read_decisions)
    recovery = _if_there(folder / "recovery" / "log.jsonl", read_recovery)
    evaluation = _if_there(folder / "evaluation" / "evaluation.json", lambda path: read_result(Evaluation, path))
    if all(part is None for part in (ranking, cut, compensation, decisions, recovery, evaluation)):
        raise SecateurError(f"{folder} holds no run to report; give the output folder of a secateur command")
    tensors = read_samples(folder / "evaluation" / "samples.safetensors")
    real, labels = tensors.pop("real", None), tensors.pop("class_labels", None)
    order = evaluation.names if evaluation is not None else MODEL_ORDER
    images = {name: tensors[name] for name in sorted(tensors, key=lambda name: _place(name, order))}
    return Run(
        folder, config, ranking, cut, compensation, decisions or Decisions(), recovery or Recovery(), evaluation,
        images, real, labels, quality, recorded, _read_validation(folder / "recovery" / "validation"),
    )  # fmt: skip


def _if_there(path: Path, read: Callable[[Path], T]) -> T | None:
    return read(path) if path.exists() else None


def _place(name: str, order: tuple[str, ...]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order)), name


def read_samples(path: Path) -> dict[str, Tensor]:
    """The images that an evaluation kept, as safetensors, and their classes; empty if there is no such file.

    Raises:
        SecateurError: the file is damaged, or holds tensors that are neither images nor labels.
    """
    try:
        tensors = load_file(path) if path.exists() else {}
    except (SafetensorError, OSError) as error:
        raise SecateurError(f"{path} is not a readable safetensors file: {first_line(error)}") from error
    for name, tensor in tensors.items():
        if tensor.ndim != (1 if name == "class_labels" else 4) or (tensor.ndim == 4 and not tensor.numel()):
            raise SecateurError(f"{path} is damaged: {name} has the shape {tuple(tensor.shape)}")
    return tensors


def _read_validation(folder: Path) -> dict[int, Tensor]:
    """The images of every step in `folder`.

    Raises:
        SecateurError: one of them is damaged.
    """
    found = {}
    for place in sorted(folder.glob("step-*")):
        images = []
        for path in sorted(place.glob("*.png"), key=lambda path: path.name.zfill(12)):
            try:
                with Image.open(path) as image:
                    pixels = torch.from_numpy(np.array(image))
            except (OSError, ValueError, SyntaxError) as error:
                raise SecateurError(f"{path} is no image: {first_line(error)}") from error
            images.append((pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)).float() / 127.5 - 1)
        if images and place.name[5:].isdecimal():
            found[int(place.name[5:])] = torch.stack(images)
    return found
