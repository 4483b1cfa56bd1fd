"""Prompts as the conditions that a text-to-image network takes, by its pipeline's own `encode_prompt`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import Tensor

from ..base.errors import ModelError, first_line
from ..base.files import read_json
from ..models.conditions import Conditions
from ..models.family import Prompts, Size
from ..models.registry import families

TEXT_PARTS = ("text_encoder", "tokenizer")  # what the names of these components begin with
KEPT = torch.float16  # on disk; the hidden states of captions are most of a cache


def encoders() -> dict[str, Prompts]:
    """How each pipeline that is supported encodes prompts, by its class name."""
    return {name: encode for family in families() for name, encode in family.prompts.items()}


@dataclass(frozen=True)
class TextEncoder:
    """The text side of a pipeline, for images of one size."""

    pipeline: Any
    encode: Prompts
    size: Size

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditions:
        """Conditions of `prompts`, a row each, on the CPU, fractions in half precision."""
        return self._encoded(list(prompts), without=False)

    @torch.no_grad()
    def null(self) -> Conditions:
        """What stands for no prompt: one row of each condition, without the batch axis."""
        return {name: value[0].clone() for name, value in self._encoded([""], without=True).items()}

    def _encoded(self, prompts: list[str], without: bool) -> Conditions:
        found = self.encode(self.pipeline, prompts, self.size, without)
        return {name: _kept(name, value.detach().cpu()) for name, value in found.items()}


def _kept(name: str, value: Tensor) -> Tensor:
    if name.startswith("encoder_hidden_states") or value.dtype in (torch.float64, torch.bfloat16):
        value = value.to(KEPT)
    if value.is_floating_point() and not value.isfinite().all():
        raise ModelError(f"the text encoders give {name} that are not finite in half precision; they cannot be used")
    return value


def text_folders(pipeline: Path) -> list[Path]:
    """The folders of the pipeline's text encoders and tokenizers, those it leaves out aside."""
    listed = read_json(pipeline / "model_index.json")
    parts = [name for name in sorted(listed) if name.startswith(TEXT_PARTS)]
    return [pipeline / name for name in parts if listed[name][0] is not None]


def check_text(pipeline: Path) -> None:
    """Find that prompts cannot be encoded, before long work starts.

    Raises:
        ModelError: a pipeline that is not in the table, a folder that it lacks, or transformers is not installed.
    """
    name = read_json(pipeline / "model_index.json").get("_class_name")
    if name not in encoders():
        raise ModelError(f"prompts of a {name} are not supported; supported: {', '.join(encoders())}")
    for folder in text_folders(pipeline):
        if not folder.is_dir():  # for a tokenizer transformers would take an empty one
            raise ModelError(f"{folder} does not exist; give the whole pipeline folder")
    if importlib.util.find_spec("transformers") is None:
        raise ModelError("text encoders need transformers: pip install 'secateur[text]'")


def open_text_encoder(pipeline: Path, size: Size, device: torch.device | str = "cpu") -> TextEncoder:
    """Load the text encoders and tokenizers of a pipeline folder, in float32, and nothing else of it.

    Raises:
        ModelError: as `check_text`; damaged or missing files.
    """
    check_text(pipeline)
    listed = read_json(pipeline / "model_index.json")
    absent = {
        name: None
        for name, value in listed.items()
        if isinstance(value, list) and name != "scheduler" and not name.startswith(TEXT_PARTS)
    }
    try:
        loaded = DiffusionPipeline.from_pretrained(
            pipeline, use_safetensors=True, trust_remote_code=False, torch_dtype=torch.float32, **absent
        )
    except (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"the text encoders of {pipeline} cannot be loaded: {first_line(error)}") from error
    return TextEncoder(loaded.to(device), encoders()[listed["_class_name"]], size)
