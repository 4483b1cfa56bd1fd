"""Distances by networks that are not ours: LPIPS between images, CLIP score between image and text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...base.errors import ModelError, first_line

ALEXNET_WEIGHTS = "alexnet-owt-7be5be79.pth"
CLIP = "openai/clip-vit-base-patch16"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

PairDistance = Callable[[Tensor, Tensor], Tensor]


def load_lpips(device: torch.device | str = "cpu") -> PairDistance:
    """LPIPS by AlexNet (Zhang et al. 2018, version 0.1) of image pairs (B, C, H, W) in [-1, 1], (B,).

    Raises:
        ModelError: lpips does not import, or the weights of its AlexNet are missing; nothing is downloaded.
    """
    try:
        from lpips import LPIPS
    except Exception as error:  # a broken torchvision below it raises other errors than ImportError
        raise ModelError(f"LPIPS needs the package lpips (pip install lpips): {first_line(error)}") from error
    cache = Path(torch.hub.get_dir(), "checkpoints", ALEXNET_WEIGHTS)
    if not cache.is_file():
        raise ModelError(
            f"LPIPS needs AlexNet weights: download https://download.pytorch.org/models/{ALEXNET_WEIGHTS} to "
            f"{cache.parent}"
        )
    network = LPIPS(net="alex", verbose=False).eval().requires_grad_(False).to(device)

    def distance(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        return network(a_BCHW.expand(-1, 3, -1, -1), b_BCHW.expand(-1, 3, -1, -1)).flatten()

    return distance


def clip_score(image_embeds_BD: Tensor, text_embeds_BD: Tensor) -> Tensor:
    """100 max(cos, 0) of each image with its text, (B,) float64: Hessel et al. 2021, eq. 1, scaled by 100, not 2.5."""
    cosine = F.cosine_similarity(image_embeds_BD.cpu().double(), text_embeds_BD.cpu().double(), dim=1)
    return 100 * cosine.clamp(min=0)


def load_clip(name: str = CLIP, device: torch.device | str = "cpu") -> Callable[[Tensor, Sequence[str]], Tensor]:
    """A function from images (B, C, H, W) in [-1, 1] and their B prompts to CLIP scores (B,).

    Raises:
        ModelError: transformers does not import, or `name` is no CLIP model.
    """
    try:
        from transformers import AutoTokenizer, CLIPModel

        model: Any = CLIPModel.from_pretrained(name).eval().requires_grad_(False).to(device)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a missing package, a name it does not know, a download that fails: of any type
        raise ModelError(f"CLIP {name} cannot be loaded (pip install transformers): {first_line(error)}") from error
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
