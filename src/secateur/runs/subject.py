"""What the commands share: opening a model and its data, and run folders that know what made them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

from torch import Tensor, nn

from ..base.console import say
from ..base.devices import choose_device
from ..base.distributed import process_count
from ..base.errors import ModelError, SecateurError
from ..base.fingerprint import model_fingerprint
from ..criteria import criterion_named
from ..data import ImageDataset, LatentDataset, load_data
from ..data.autoencoder import open_autoencoder
from ..data.classes import numbered
from ..data.conditions import check_conditions
from ..data.encode import encode, open_encoded, sizes, whole
from ..io.checkpoint import from_pretrained
from ..io.locate import Component
from ..io.pipeline import Loaded, load
from ..models.network import as_network, class_count, device_of, input_shape, takes_text
from ..models.registry import describe
from ..process.named import PROCESSES, ProcessName
from ..structure import Structure

NO_PIPELINE = "the model takes text, and no VAE and text encoder are beside it; give its whole pipeline folder"
EMBEDDED = ("digits-unet", "digits-sit")


def open_model(
    model: str, process: ProcessName = "auto", device: str = "auto", component: Component | None = None
) -> tuple[Loaded, Structure]:
    """Load a folder, a hub id or an embedded model, move it to the device, and describe its structure."""
    with _place(model) as place:
        loaded = load(place, component=component, process_config=PROCESSES[process])
    structure = structure_of(model, loaded.model)
    loaded.model.to(choose_device(device))
    return loaded, structure


def structure_of(model: str, network: nn.Module) -> Structure:
    """The structure of `network`, which was loaded from `model`.

    Raises:
        ModelError: it is not declared, or has a part that is not.
    """
    try:
        return describe(network)
    except ValueError as error:
        raise ModelError(f"{model}: {error}") from error


def open_weights(model: str, device: str = "auto", component: Component | None = None) -> nn.Module:
    """As `open_model`, for what needs no process."""
    with _place(model) as place:
        return as_network(from_pretrained(place, component=component)).to(choose_device(device))


@contextmanager
def _place(model: str) -> Iterator[str | Path]:
    """Where the model is: a folder of the package for the embedded ones, else what the user wrote."""
    if model not in EMBEDDED or Path(model).exists():
        yield model
        return
    with as_file(files("secateur") / "assets" / model) as folder:
        yield folder


def open_calibration(data: str | None, loaded: Loaded, criterion: str) -> ImageDataset | None:
    """Open the images that the criterion looks at; None for one that looks at none.

    Raises:
        SecateurError: it does, and there is no `data`; else as `open_data` and `check_conditions`.
    """
    if not criterion_named(criterion).needs_data:
        return None
    if data is None:
        raise SecateurError(f"criterion {criterion} looks at images; give --data")
    dataset = open_data(data, loaded)
    check_conditions(loaded.model, dataset)
    return dataset


def open_data(data: str, loaded: Loaded, new_labels: bool = False) -> ImageDataset:
    """Open images for the loaded model, and say which of its classes the data's are, unless they will be `new_labels`.

    For a model of latents, say what `encode_data` will write.

    Raises:
        SecateurError: as `load_data` and `open_encoded`; a text-conditional model without its pipeline.
    """
    dataset: ImageDataset
    if loaded.vae is not None:
        dataset = encoded = open_encoded(data, loaded)
        for name, disk, memory, folder in sizes(encoded, loaded):
            weights = f"{memory / 1e6:,.0f} MB of weights in memory"
            say(f"{name:10} to encode once: about {disk / 1e6:,.1f} MB in {folder}, {weights}")
    elif takes_text(loaded.model):
        raise ModelError(NO_PIPELINE)
    else:
        dataset = load_data(data, input_shape(loaded.model))
    if not new_labels:
        _say_classes(dataset, class_count(loaded.model))
    return dataset


def _say_classes(dataset: ImageDataset, classes: int | None) -> None:
    """Names say nothing about which of a model's `classes` are meant; where these are more, they are the first ones."""
    names = dataset.class_names
    if classes is not None and 0 < len(names) < classes and names != numbered(len(names)):
        ends = f"0 is {names[0]}, {len(names) - 1} is {names[-1]}"
        say(f"classes    the data's {len(names)} are taken for the first of the model's {classes}: {ends}")


def inputs_of(dataset: ImageDataset | None = None, **models: Loaded | None) -> dict[str, str]:
    """Fingerprints of the contents that a run is made from, by the names of the settings that say where they lie."""
    inputs = {
        name: model_fingerprint(loaded.model, loaded.process) for name, loaded in models.items() if loaded is not None
    }
    return inputs if dataset is None else {**inputs, "data": dataset.fingerprint}


def encode_data(dataset: ImageDataset, loaded: Loaded) -> ImageDataset:
    """The data with everything encoded that `open_data` said, which takes a while the first time.

    Raises:
        SecateurError: as `encode`; several processes, of which only one may write.
    """
    if not isinstance(dataset, LatentDataset) or whole(dataset):
        return dataset
    if process_count() > 1:
        raise SecateurError("the data is not encoded yet, which one process must do: run secateur encode first")
    return encode(dataset, loaded)


def decoder(loaded: Loaded) -> Callable[[Tensor], Tensor] | None:
    """What turns the model's latents into images; None for a model of pixels."""
    return None if loaded.vae is None else open_autoencoder(loaded.vae, device_of(loaded.model)).decode
