"""Conditions of a model: which of the data's it takes, and its null condition."""

from collections.abc import Callable

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import nn

from ..base.errors import DataError
from ..models.conditions import LABELS, UNCONDITIONAL, Conditions, without_labels
from ..models.network import class_count, null_class
from . import ImageDataset, calibration_order
from .latents import will_have_text

GIVE_LABELS = "put images in one folder per class, or name the column of a table, datasets:NAME,label=COLUMN"


def disable_label_dropout(model: nn.Module) -> None:
    """Stop a DiT from dropping labels itself: it would draw independently in every block."""
    for module in model.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0


def accepts(model: nn.Module) -> Callable[[Conditions], Conditions]:
    """A function that selects the conditions that `model` takes: labels only if it has classes."""
    return without_labels if class_count(model) is None else dict


def null_conditions(model: nn.Module, dataset: ImageDataset | None = None) -> Conditions:
    """The null condition: the model's null class, or the data's encoded empty prompt; empty without either."""
    null = null_class(model)
    labels = UNCONDITIONAL if null is None else {LABELS: torch.tensor(null)}
    return {**labels, **(UNCONDITIONAL if dataset is None else dataset.null)}


def has_null_condition(model: nn.Module, dataset: ImageDataset) -> bool:
    """Whether there is a null condition, or will be once the data's captions are encoded."""
    return bool(null_conditions(model, dataset)) or will_have_text(dataset)


def label_conditions(labels: list[int] | None) -> Conditions:
    """Class labels as conditions; none without them."""
    return UNCONDITIONAL if labels is None else {LABELS: torch.tensor(labels)}


def sample_labels(model: nn.Module, samples: range) -> torch.Tensor | None:
    """Class labels (N,) of `samples`: all classes in turn. None if the model has none."""
    classes = class_count(model)
    return None if classes is None else torch.tensor(samples) % classes


def sample_conditions(model: nn.Module, dataset: ImageDataset, samples: range, seed: int = 0) -> Conditions:
    """Conditions of `samples`: class labels in turn, and all other conditions of the data's images, shuffled."""
    labels = sample_labels(model, samples)
    conditions = UNCONDITIONAL
    if has_conditions(dataset):
        conditions = without_labels(dataset.batch(images_of(dataset, samples, seed)).conditions)
    return {**conditions, **({} if labels is None else {LABELS: labels})}


def has_conditions(dataset: ImageDataset) -> bool:
    """Whether the data's images come with other conditions than labels, such as embeddings of text."""
    return len(dataset) > 0 and bool(without_labels(dataset.batch([0]).conditions))


def sample_captions(dataset: ImageDataset, samples: range, seed: int = 0) -> list[str]:
    """The captions of `sample_conditions`, for a text model."""
    return [dataset.captions[index] for index in images_of(dataset, samples, seed)]


def images_of(dataset: ImageDataset, samples: range, seed: int) -> list[int]:
    """The index of the image that each sample takes its conditions from, or that a decoder reconstructs."""
    return calibration_order(dataset, seed)[torch.tensor(samples) % len(dataset)].tolist()


def check_conditions(model: nn.Module, dataset: ImageDataset, needed: bool = True) -> None:
    """Refuse data whose labels do not fit the model, and data without labels if they are `needed`.

    Raises:
        DataError: the model is class-conditional and the data has more classes than it, or no labels.
    """
    classes, found = class_count(model), len(dataset.class_names)
    if classes is None:
        return
    if found > classes:
        known = f"the model knows 0 to {classes - 1}"
        raise DataError(f"{dataset.name} has classes 0 to {found - 1}, {known}; give data of its classes")
    if needed and found == 0:
        raise DataError(f"{dataset.name} has no labels, which the model needs; {GIVE_LABELS}")
