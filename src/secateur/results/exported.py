"""What is written beside a file for another program: `model.json` of an export, `slicing.json` of a LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import NotRequired, TypedDict


class Described(TypedDict):
    """An input or output of an exported file: the shape and dtype of a tensor, or the value of a fixed input."""

    shape: NotRequired[list[int]]
    dtype: NotRequired[str]
    value: NotRequired[Any]


Exported = TypedDict(
    "Exported",
    {
        "format": str,
        "file": str,
        "class": str,
        "inputs": dict[str, Described],
        "output": Described,
        "dtype": str,
        "batch_size": int,
        "opset": int | None,  # of onnx
        "precision_difference": float,  # largest change of the output by the dtype
        "bytes": int,
        "milliseconds": float,  # of a call of the written file
        "milliseconds_before": float,  # of a call of the model
        "largest_difference": float,  # between the outputs of file and model
        "largest_output": float,
        "warning": str,
        "manifest_sha256": str | None,
        "versions": Mapping[str, str],
    },
)
"""The content of `model.json`."""


class ExportedFile(Exported):
    """What `secateur.export` returns: the content of `model.json`, and the file."""

    written: Path


Counts = TypedDict("Counts", {"in": int, "out": int})


class SlicedLora(TypedDict):
    """The content of `slicing.json`: numbers of tensors and of parameters before and after."""

    lora: str
    model: str
    manifest_sha256: str
    tensors: Counts
    parameters: Counts
    warning: str | None
    versions: Mapping[str, str]
