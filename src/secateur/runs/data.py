"""Opening the data that a user gives, in whatever form, as a data set that fits the model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..base.console import say
from ..base.distributed import wait_for_everyone
from ..base.errors import DataError, ModelError, require
from ..base.fingerprint import model_fingerprint
from ..data import EncodedDataset, ImageDataset, LatentDataset, NoData, load_data
from ..data.autoencoder import latent_space
from ..data.classes import numbered
from ..data.encode import encode, encoded_when_read, open_encoded, sizes, whole, with_null
from ..data.generated import DecodedDataset, GeneratedDataset, draw_samples, is_generated, open_generated
from ..data.objects import ObjectDataset, as_batch, captions_of, open_objects
from ..models.conditions import LABELS
from ..models.network import class_count, condition_names, input_shape, takes_text
from .subject import Subject

Encodable = TypeVar("Encodable", ImageDataset, ImageDataset | None)

NO_PIPELINE = "the model takes text, and has no VAE and text encoder beside it; give its whole pipeline"


def open_data(data: Any, subject: Subject, new_labels: bool = False) -> ImageDataset:
    """Open data for the subject's model; print which of its classes the data's are, unless `new_labels` will replace
    them.

    Args:
        data: a path; the word generated, for samples of the model; a tensor; a sequence, data set or loader of tensors,
            of (images, labels) or of dictionaries; a `datasets.Dataset`; or a data set of ours.
        subject: its pipeline encodes the images: those of a path into a cache, in `encode_data`, all others in memory
            when they are read.
        new_labels: whether the data's classes will replace the model's.

    Raises:
        SecateurError: as `load_data`, `open_encoded` and `open_objects`; a text-conditional model without its pipeline.
    """
    if is_generated(data):
        dataset = _generated(str(data), subject)
    elif isinstance(data, str | Path):
        dataset = _from_path(str(data), subject)
    elif _is_dataset(data):
        dataset = data
    else:
        dataset = _from_objects(data, subject, new_labels)
    if not new_labels:
        _say_classes(dataset, class_count(subject.model))
    return dataset


def encode_data(dataset: Encodable, subject: Subject) -> Encodable:
    """The data, encoded where `open_data` planned it, which takes a while the first time; processes share the work.

    Raises:
        SecateurError: as `encode`.
    """
    if (drawn := _drawn(dataset)) is not None:
        draw_samples(drawn)
        wait_for_everyone(subject.on_cpu)
    if not isinstance(dataset, EncodedDataset):
        return dataset
    complete = whole(dataset)
    wait_for_everyone(subject.on_cpu)  # no process writes before all have looked
    if complete:
        return dataset
    encoded = encode(dataset, subject.loaded)
    wait_for_everyone(subject.on_cpu)  # each has encoded its part
    return with_null(encoded)


def no_data(subject: Subject) -> NoData:
    """What stands for data where a function was given none, in the shape of the subject's model."""
    shape, vae = input_shape(subject.model), subject.loaded.vae
    return NoData(shape, shape if vae is None else latent_space(vae).image_shape(shape))


def _generated(data: str, subject: Subject) -> ImageDataset:
    shape, vae = input_shape(subject.model), subject.loaded.vae
    images = shape if vae is None else latent_space(vae).image_shape(shape)
    return open_generated(data, subject.model, subject.process, decoder(subject), images)


def unless_generated(data: Any) -> Any:
    """`data`, or None if it means samples of another model than the function's own: see `drawn_by`."""
    return None if is_generated(data) else data


def drawn_by(dense: Subject | None, data: Any) -> ImageDataset | None:
    """Samples of the dense model as a data set, if `data` means that; else None.

    Raises:
        DataError: there is no dense model.
    """
    if not is_generated(data):
        return None
    if dense is None:
        raise DataError("generated data are drawn by the dense model; give it as the teacher")
    return open_data(data, dense)


def _drawn(dataset: ImageDataset | None) -> GeneratedDataset | None:
    """The data set, if it consists of samples that the dense model will draw."""
    inner = dataset.images if isinstance(dataset, LatentDataset) else dataset
    inner = inner.latents if isinstance(inner, DecodedDataset) else inner
    return inner if isinstance(inner, GeneratedDataset) else None


def decoder(subject: Subject) -> Callable[[Tensor], Tensor] | None:
    """The function from the model's latents to images; None for a model of pixels."""
    return None if subject.autoencoder is None else subject.autoencoder.decode


def _is_dataset(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("batch", "shape", "class_names", "null", "__len__"))


def _from_path(data: str, subject: Subject) -> ImageDataset:
    shape = input_shape(subject.model)
    if isinstance(subject.loaded.pipeline, Path) and subject.loaded.vae is not None:
        dataset = open_encoded(data, subject.loaded)
        for name, disk, memory, folder in sizes(dataset, subject.loaded):
            weights = f"{memory / 1e6:,.0f} MB of weights in memory"
            say(f"{name:10} to encode once: about {disk / 1e6:,.1f} MB in {folder}, {weights}")
        return dataset
    if subject.loaded.vae is not None:
        images = load_data(data, latent_space(subject.loaded.vae).image_shape(shape))
        return encoded_when_read(images, subject.loaded)
    if takes_text(subject.model):
        raise ModelError(NO_PIPELINE)
    return load_data(data, shape)


def _from_objects(data: Any, subject: Subject, new_labels: bool = False) -> ImageDataset:
    """A data set of objects: samples as the network takes them, or images for its pipeline to encode.

    Raises:
        DataError: their shape is neither.
    """
    wanted, classes = input_shape(subject.model), class_count(subject.model)
    read, count = open_objects(data, axes=len(wanted))
    first = read([0])
    named = condition_names(subject.model)
    parameters = {*inspect.signature(subject.model.forward).parameters, *(name.partition(".")[0] for name in named)}
    convert = partial(as_batch, parameters=frozenset(parameters), classes=None if new_labels else classes)
    batch = convert(first)
    shape = tuple(batch.sample.shape[1:])
    if len(shape) != len(wanted):
        axes = "(C, H, W)" if len(wanted) == 3 else "(C, T, H, W)"
        raise DataError(f"the data has samples of shape {shape}; give {axes}")
    labelled, known = batch.class_labels is not None, None if new_labels else classes
    names = numbered(known or _label_count(read, convert, count)) if labelled else ()
    captions = _captions(read, count, first)
    name = type(data).__name__
    if shape == wanted:
        _check_text(subject, named, set(batch.conditions) - {LABELS})
        return ObjectDataset(name, shape, names, count, read, convert)
    vae = subject.loaded.vae
    images = None if vae is None else latent_space(vae).image_shape(wanted)
    if shape == images:
        return encoded_when_read(ObjectDataset(name, shape, names, count, read, convert, captions), subject.loaded)
    beside = f", or {images} images for its pipeline to encode" if images is not None else ""
    raise DataError(f"the data has samples of shape {shape}, the model takes {wanted}{beside}; resize the data")


def _check_text(subject: Subject, named: Sequence[str], found: Set[str]) -> None:
    """Refuse latents without a condition that the model attends to; without a mask, all tokens count.

    Raises:
        ModelError: one is missing.
    """
    missing = [name for name in named if name not in found and name != LABELS and "mask" not in name]
    if missing or (takes_text(subject.model) and not found):
        raise ModelError(
            f"the data has latents without {' and '.join(missing) or 'text conditions'}; give images with captions, or "
            "the network's own arguments beside the latents"
        )


def _label_count(read: Callable[[list[int]], Any], convert: Callable[[Any], Any], count: int) -> int:
    """One more than the largest label; reads all samples."""
    labels = [convert(read(part.tolist())).class_labels for part in torch.arange(count).split(1024)]
    return int(torch.cat(labels).max()) + 1


def _captions(read: Callable[[list[int]], Any], count: int, first: Any) -> tuple[str, ...]:
    if captions_of(first) is None:
        return ()
    return tuple(text for part in torch.arange(count).split(256) for text in captions_of(read(part.tolist())) or [])


def _say_classes(dataset: ImageDataset, classes: int | None) -> None:
    """If the model has more classes than the data, print that the data's are taken for the first ones: names alone do
    not tell."""
    names = dataset.class_names
    if classes is not None and 0 < len(names) < classes and names != numbered(len(names)):
        ends = f"0 is {names[0]}, {len(names) - 1} is {names[-1]}"
        say(f"classes    the data's {len(names)} are taken for the first of the model's {classes}: {ends}")


def inputs_of(dataset: ImageDataset | None = None, **models: Subject | None) -> dict[str, str]:
    """Fingerprints of a run's inputs, by the names of the settings that say where these are.

    Raises:
        SecateurError: a process that another run of the program could not know again.
    """
    subjects = {name: subject for name, subject in models.items() if subject is not None}
    for subject in subjects.values():
        named = f" at {hex(id(subject.process))}" not in repr(subject.process)
        kind = type(subject.process).__name__
        require(
            named, f"{kind} prints as an address, so a run in a folder would not know it again: make it a dataclass"
        )
    inputs = {name: model_fingerprint(subject.model, subject.process) for name, subject in subjects.items()}
    return inputs if dataset is None else {**inputs, "data": dataset.fingerprint}


def name_of(data: Any, dataset: ImageDataset | None) -> str | None:
    """The name of the data in a run: the path, or the type of object; `inputs_of` tells objects of one type apart."""
    return str(data) if isinstance(data, str | Path) else None if dataset is None else dataset.name
