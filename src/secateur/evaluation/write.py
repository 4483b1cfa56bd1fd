"""Writing an evaluation: numbers as JSON, and samples. Tables are written by `reporting`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..base.files import atomic_file
from ..results.codec import write_result
from ..results.evaluation import Evaluation


def write_evaluation(result: Evaluation, folder: str | Path, images: Mapping[str, Tensor] | None = None) -> Path:
    """Write `evaluation.json`; with `images`, also these as `samples.safetensors`. Returns the folder."""
    folder = Path(folder)
    if images is not None:
        with atomic_file(folder / "samples.safetensors") as temporary:
            save_file({name: tensor.contiguous() for name, tensor in images.items()}, temporary)
    write_result(folder / "evaluation.json", result)  # last: if it exists, the evaluation is complete
    return folder
