"""What a recovery run must know about a model's class labels."""

from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from ..data import ImageDataset
from ..errors import TrainingError
from ..inputs import class_count


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
    classes = class_count(model)
    if classes is not None and not 0 < len(dataset.class_names) <= classes:
        raise TrainingError(
            f"the model takes labels of {classes} classes, {dataset.name} has {len(dataset.class_names)}; "
            "give data with labels, one sub-folder per class"
        )
