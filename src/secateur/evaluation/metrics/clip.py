"""CLIP score: how well an image matches its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...base.errors import ModelError, first_line
from ...base.rules import check_fields
from ...io.index import check_transformers
from ...results.measured import Metric
from ..measurement import CaptionScore, OfCaptions, Subject

CLIP = "openai/clip-vit-base-patch16"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipOptions:
    """Options of the metric clip.

    Attributes:
        model: CLIP model of transformers: a hub id, or a folder.
    """

    model: str = CLIP

    def __post_init__(self) -> None:
        check_fields("evaluation clip", self)


def clip_score(image_embeds_BD: Tensor, text_embeds_BD: Tensor) -> Tensor:
    """100 max(cos, 0) of each image with its text, (B,) float64: Hessel et al. 2021, eq. 1, scaled by 100, not 2.5."""
    cosine = F.cosine_similarity(image_embeds_BD.cpu().double(), text_embeds_BD.cpu().double(), dim=1)
    return 100 * cosine.clamp(min=0)


def load_clip(name: str = CLIP, device: torch.device | str = "cpu") -> CaptionScore:
    """A function from images (B, C, H, W) in [-1, 1] and their B prompts to CLIP scores (B,).

    Raises:
        ModelError: transformers cannot be imported, or `name` is not a CLIP model.
    """
    try:
        from transformers import AutoTokenizer, CLIPModel

        check_transformers(name)
        model: Any = (
            CLIPModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True)
            .eval()
            .requires_grad_(False)
            .to(device)
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a missing package, a name it does not know, a download that fails: of any type
        raise ModelError(f"CLIP {name} cannot be loaded (pip install transformers): {first_line(error)}") from error
    model.eval().requires_grad_(False).to(device)
    size = model.config.vision_config.image_size
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))

    @torch.no_grad()
    def score(images_BCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        x = (images_BCHW.to(device).expand(-1, 3, -1, -1) + 1) / 2
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        tokens = tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(device)
        output = model(pixel_values=(x - mean) / std, **tokens)
        return clip_score(output.image_embeds, output.text_embeds)

    return score


def check(subject: Subject) -> None:
    """Load the model once, to check that it is available."""
    load_clip(subject.config.clip.model, subject.device)


CLIP_SCORE = OfCaptions(
    name="clip",
    gives={"clip_score": Metric("CLIP score", "higher")},
    needs=frozenset({"samples", "captions"}),
    check=check,
    load=lambda subject: {"clip_score": load_clip(subject.config.clip.model, subject.device)},
)
