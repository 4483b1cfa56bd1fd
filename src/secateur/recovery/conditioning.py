"""What a recovery run must know about a model's class labels."""

from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from ..data import ImageDataset
from ..errors import DataError
from ..inputs import class_count


def disable_label_dropout(model: nn.Module) -> None:
    """Stop a DiT from dropping labels by itself: it would draw independently in every block."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0


def check_labels(model: nn.Module, dataset: ImageDataset, needed: bool = True) -> None:
    """Refuse data whose labels the model cannot take; without labels too, unless they are not `needed`.

    Raises:
        DataError: the model is class-conditional and the data has more classes than it, or no labels.
    """
    classes, found = class_count(model), len(dataset.class_names)
    if classes is None:
        return
    if found > classes:
        raise DataError(f"{dataset.name} has {found} classes, the model knows {classes}; give data of its classes")
    if needed and found == 0:
        raise DataError(f"{dataset.name} has no labels, which the model needs; put images in one folder per class")
