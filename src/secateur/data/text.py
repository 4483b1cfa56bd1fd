"""Prompts as the conditions that a text-to-image network takes, by its pipeline's own `encode_prompt`.

One function per pipeline; `without` asks for what the pipeline guides away from: the encoded empty prompt, or zeros
where the pipeline was trained so (SDXL).
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Sequence
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

Size = tuple[int, int]  # height and width of the images, in pixels
Encode = Callable[[Any, list[str], Size, bool], dict[str, Tensor]]
TEXT_PARTS = ("text_encoder", "tokenizer")  # what the names of these components begin with
KEPT = torch.float16  # on disk; the hidden states of captions are most of a cache


def _stable_diffusion(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    states, empty = pipeline.encode_prompt(prompts, pipeline.device, 1, without)
    return {"encoder_hidden_states": empty if without else states}


def _stable_diffusion_xl(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """Two CLIPs side by side, the second one's pooled output, and the sizes of Podell et al. 2023, section 2.2."""
    states, empty, pooled, pooled_empty = pipeline.encode_prompt(
        prompts, device=pipeline.device, do_classifier_free_guidance=without
    )
    uncropped = (*size, 0, 0, *size)
    return {
        "encoder_hidden_states": empty if without else states,
        "added_cond_kwargs.text_embeds": pooled_empty if without else pooled,
        "added_cond_kwargs.time_ids": torch.tensor(uncropped, dtype=torch.float32).repeat(len(prompts), 1),
    }


def _stable_diffusion_3(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    states, empty, pooled, pooled_empty = pipeline.encode_prompt(
        prompts, None, None, device=pipeline.device, do_classifier_free_guidance=without
    )
    return {
        "encoder_hidden_states": empty if without else states,
        "pooled_projections": pooled_empty if without else pooled,
    }


def _pixart(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    states, mask, empty, empty_mask = pipeline.encode_prompt(
        prompts, do_classifier_free_guidance=without, device=pipeline.device
    )
    height, width = size
    return {
        "encoder_hidden_states": empty if without else states,
        "encoder_attention_mask": empty_mask if without else mask,
        "added_cond_kwargs.resolution": torch.tensor([[height, width]], dtype=torch.float32).repeat(len(prompts), 1),
        "added_cond_kwargs.aspect_ratio": torch.tensor([[height / width]]).repeat(len(prompts), 1),
    }


def _flux(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """T5 states and CLIP's pooled output; the empty prompt is encoded as any other, as for the pipeline's true CFG."""
    states, pooled, _ = pipeline.encode_prompt(prompts, device=pipeline.device)
    return {"encoder_hidden_states": states, "pooled_projections": pooled}


def _sana(pipeline: Any, prompts: list[str], size: Size, without: bool) -> dict[str, Tensor]:
    """Gemma's states and their mask; prompts, but not the empty one, follow the pipeline's own instruction."""
    instruction = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    states, mask, empty, empty_mask = pipeline.encode_prompt(
        prompts,
        do_classifier_free_guidance=without,
        device=pipeline.device,
        complex_human_instruction=instruction,
    )
    return {
        "encoder_hidden_states": empty if without else states,
        "encoder_attention_mask": empty_mask if without else mask,
    }


ENCODERS: dict[str, Encode] = {
    "StableDiffusionPipeline": _stable_diffusion,
    "StableDiffusionXLPipeline": _stable_diffusion_xl,
    "StableDiffusion3Pipeline": _stable_diffusion_3,
    "FluxPipeline": _flux,
    "PixArtAlphaPipeline": _pixart,
    "PixArtSigmaPipeline": _pixart,
    "SanaPipeline": _sana,
}


@dataclass(frozen=True)
class TextEncoder:
    """The text side of a pipeline, for images of one size."""

    pipeline: Any
    encode: Encode
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
    if name not in ENCODERS:
        raise ModelError(f"prompts of a {name} are not supported; supported: {', '.join(ENCODERS)}")
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
    return TextEncoder(loaded.to(device), ENCODERS[listed["_class_name"]], size)
