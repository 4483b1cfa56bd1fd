"""What a recovery run must know about a model's class labels."""

from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from ..data import ImageDataset
from ..errors import TrainingError


def null_class(model: nn.Module) -> int | None:
    """The label that stands for "no class" in a DiT or SiT; None if the model has no row for it."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            return module.num_classes if module.embedding_table.num_embeddings > module.num_classes else None
    return None


def num_classes(model: nn.Module) -> int | None:
    """How many classes the model is conditioned on; None if it takes no labels."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            return module.num_classes
    embedding = getattr(model, "class_embedding", None)
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def disable_label_dropout(model: nn.Module) -> None:
    """Stop a DiT from dropping labels by itself: it would draw independently in every block."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0


def check_labels(model: nn.Module, dataset: ImageDataset) -> None:
    """Refuse data whose labels the model cannot take.

    Raises:
        TrainingError: the model is class-conditional and the data has no labels, or more classes than it.
    """
    classes = num_classes(model)
    if classes is not None and not 0 < len(dataset.class_names) <= classes:
        raise TrainingError(
            f"the model takes labels of {classes} classes, {dataset.name} has {len(dataset.class_names)}; "
            "give data with labels, one sub-folder per class"
        )
