"""Encoding prompts to a text-to-image network's conditions, with its pipeline's own `encode_prompt`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..base.errors import ModelError
from ..io.foreign import loading
from ..io.index import components, pipeline_class
from ..io.pipeline import open_pipeline
from ..models.conditions import Conditions
from ..models.family import Prompts, Size
from ..models.registry import families

TEXT_PARTS = ("text_encoder", "tokenizer")  # prefixes of the components' names
KEPT = torch.float16  # on disk; the hidden states of captions are most of a cache
WIDE = (torch.float64, torch.bfloat16)


def encoders() -> dict[str, Prompts]:
    """How each supported pipeline encodes prompts, by its class name."""
    return {name: encode for family in families() for name, encode in family.prompts.items()}


@dataclass(frozen=True)
class TextEncoder:
    """The text side of a pipeline, for images of one size."""

    pipeline: Any
    encode: Prompts
    size: Size
    name: str

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditions:
        """Conditions of `prompts`, a row each, on the CPU, floating-point ones in half precision."""
        return self._encoded(list(prompts), without=False)

    @torch.no_grad()
    def null(self) -> Conditions:
        """The null condition: one row of each entry, without the batch axis."""
        return {name: value[0].clone() for name, value in self._encoded([""], without=True).items()}

    def _encoded(self, prompts: list[str], without: bool) -> Conditions:
        with loading(self.name, "cannot encode prompts"):
            found = self.encode(self.pipeline, prompts, self.size, without)
        return {name: _kept(name, value.detach().cpu()) for name, value in found.items()}


def _kept(name: str, value: Tensor) -> Tensor:
    """Hidden states in half precision: bfloat16 if they exceed the range of float16, as in layers of large models."""
    half = (name.startswith("encoder_hidden_states") and value.is_floating_point()) or value.dtype in WIDE
    kept = value.to(KEPT) if half else value
    if half and kept.isinf().any():
        kept = value.bfloat16()
    if kept.is_floating_point() and not kept.isfinite().all():
        raise ModelError(f"the text encoders give {name} that are not finite; they cannot be used")
    return kept


def text_parts(pipeline: Path | DiffusionPipeline) -> dict[str, Any]:
    """The text encoders and tokenizers that a pipeline has, by name: folders, or objects."""
    if isinstance(pipeline, Path):
        found: dict[str, Any] = {name: pipeline / name for name in components(pipeline)}
    else:
        found = {name: part for name, part in pipeline.components.items() if part is not None}
    return {name: found[name] for name in sorted(found) if name.startswith(TEXT_PARTS)}


def check_text(pipeline: Path | DiffusionPipeline) -> None:
    """Check that prompts can be encoded, before long work starts.

    Raises:
        ModelError: the pipeline is not supported, lacks a folder, or transformers is not installed.
    """
    name = _class_of(pipeline)
    if name not in encoders():
        raise ModelError(f"prompts of a {name} are not supported; supported: {', '.join(encoders())}")
    for part in text_parts(pipeline).values():
        if isinstance(part, Path) and not part.is_dir():  # for a tokenizer transformers would take an empty one
            raise ModelError(f"{part} does not exist; give the whole pipeline folder")
    if importlib.util.find_spec("transformers") is None:
        raise ModelError("text encoders need transformers: pip install 'secateur[text]'")


def open_text_encoder(
    pipeline: Path | DiffusionPipeline, size: Size, device: torch.device | str = "cpu"
) -> TextEncoder:
    """Load only the text encoders and tokenizers of a pipeline folder, in float32.

    Those of a pipeline in memory are used without changes.

    Raises:
        ModelError: as `check_text`; damaged or missing files.
    """
    check_text(pipeline)
    encode = encoders()[_class_of(pipeline)]
    if not isinstance(pipeline, Path):
        return TextEncoder(pipeline, encode, size, f"the {type(pipeline).__name__} in memory")
    absent = {name: None for name in components(pipeline) if name != "scheduler" and not name.startswith(TEXT_PARTS)}
    loaded = open_pipeline(pipeline, torch.float32, None, "the text encoders of", **absent)
    return TextEncoder(loaded.to(device), encode, size, str(pipeline))


def _class_of(pipeline: Path | DiffusionPipeline) -> str:
    return pipeline_class(pipeline) if isinstance(pipeline, Path) else type(pipeline).__name__
