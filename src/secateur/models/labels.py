"""A class-conditional model for another set of classes, for example an ImageNet DiT for birds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor, nn

from ..base.errors import ModelError
from .registry import family_of

NOISE = 0.02  # standard deviation of a DiT's label embedding at initialization (Peebles & Xie 2023, released code)


def relabel(model: nn.Module, classes: int, seed: int = 0) -> nn.Module:
    """Give `model`, in place, a new label embedding of `classes` classes, and return it.

    Every new class starts from the old "no class", which stands for any image, or without one from the mean of the old
    classes, plus noise that distinguishes the classes. "No class" itself stays. Every block of diffusers' DiT has its
    own embedding; all get the same noise.

    Raises:
        ModelError: the model has no classes.
    """
    labels = family_of(model).labels(model)
    if labels is None:
        raise ModelError(f"{type(model).__name__} knows no classes: there are no labels to replace")
    for table in label_tables(model):
        old = table.weight.detach()
        start = old[-1] if labels.null else old.mean(0)
        noise = torch.randn(classes, len(start), generator=torch.Generator().manual_seed(seed)).to(start)
        rows = [start + NOISE * noise, old[-1:]] if labels.null else [start + NOISE * noise]
        _replace(table, torch.cat(rows))
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.num_classes = classes
    model.register_to_config(**{labels.key: classes})  # type: ignore[operator]
    return model


def label_tables(model: nn.Module) -> Iterator[nn.Embedding]:
    """Every table of class embeddings in `model`."""
    for name, module in model.named_modules():
        if isinstance(module, LabelEmbedding):
            yield module.embedding_table
        elif name == "class_embedding" and isinstance(module, nn.Embedding):
            yield module


def train_only_labels(model: nn.Module) -> None:
    """Freeze everything in `model` but its class embeddings."""
    model.requires_grad_(False)
    for table in label_tables(model):
        table.weight.requires_grad_(True)


def _replace(table: nn.Embedding, weight: Tensor) -> None:
    table.weight = nn.Parameter(weight)
    table.num_embeddings = len(weight)
