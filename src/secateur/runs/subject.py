"""What the commands share: opening a model and its data, and run folders that know what made them."""

from __future__ import annotations

import dataclasses
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from ..base.distributed import is_main_process, process_count
from ..base.errors import ModelError, SecateurError, first_line
from ..base.files import read_json, remove_left_behind, write_json
from ..base.settings import FREE, differing
from ..data import ImageDataset, LatentDataset, load_data
from ..data.autoencoder import open_autoencoder
from ..data.classes import numbered
from ..data.encode import encode, open_encoded, sizes, whole
from ..io.checkpoint import Loaded, from_pretrained, load
from ..io.manifest import library_versions
from ..models.decoder import as_network
from ..models.network import class_count, device_of, input_shape, takes_text
from ..models.registry import describe
from ..structure import Structure

Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
Component = Literal["unet", "transformer", "vae"]
ProcessName = Literal["auto", "ddpm", "v-prediction", "flow", "flow-sit"]
NO_PIPELINE = "the model takes text, and no VAE and text encoder are beside it; give its whole pipeline folder"
EMBEDDED = ("digits-unet", "digits-sit")

_FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
PROCESSES: dict[str, dict[str, Any] | None] = {
    "auto": None,
    "ddpm": {"_class_name": "DDPMScheduler", "beta_schedule": "linear"},
    "v-prediction": {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "prediction_type": "v_prediction"},
    "flow": _FLOW,
    "flow-sit": _FLOW | {"secateur_flow_convention": "sit"},
}


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


def choose_device(name: str) -> torch.device:
    """The named device, made the current one; "auto" is the accelerator when there is one, else the CPU.

    Raises:
        SecateurError: there is no such device.
    """
    if name == "auto":
        # A CUDA build names its accelerator on a machine without one too.
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        name = "cpu" if found is None else found.type
    try:
        device = device_of_process(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise SecateurError(f"there is no device {name!r} here: {first_line(error)}") from error
    return device


def device_of_process(name: str) -> torch.device:
    """The named device; where the name has no index, a launcher gives each of its processes one by LOCAL_RANK."""
    device = torch.device(name)
    if device.index is None and device.type not in ("cpu", "mps"):
        return torch.device(device.type, int(os.environ.get("LOCAL_RANK", "0")))
    return device


def one_process(command: str) -> None:
    """Refuse to run `command` in several processes, which would write the same files.

    Raises:
        SecateurError: a launcher started more than one.
    """
    if process_count() > 1:
        raise SecateurError(f"{command} runs in one process; compress, finetune, evaluate and sample run in several")


def start_run(out: str | Path, config: Mapping[str, Any]) -> Path:
    """Make the run folder `out` with its `config.json`, or take up the run that the same settings began there.

    The `FREE` settings may be others, and are then what `config.json` says.

    Raises:
        SecateurError: the folder holds something else, or a run with other settings.
    """
    out = Path(out)
    if not is_main_process():
        return out
    described = plain(config)
    path = out / "config.json"
    if path.is_file():
        before = read_json(path)
        if changed := differing({key: before.get(key) for key in described}, described, FREE):
            raise SecateurError(
                f"{out} was begun with another {', '.join(changed)}; choose another --out, or the same settings"
            )
        remove_left_behind(out)
        write_json(path, before | described)
        return out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SecateurError(f"{out} exists and is no run of secateur; choose another --out")
    device = f"{platform.machine()}, {torch.get_num_threads()} thread(s)"
    if torch.accelerator.is_available():
        device = f"{torch.accelerator.current_accelerator()}, {device}"
    about = {
        "command_line": " ".join(["secateur", *sys.argv[1:]]),
        "versions": library_versions() | {"python": platform.python_version()},
        "device": device,
    }
    write_json(path, described | about)
    return out


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as what JSON gives back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def say(line: str) -> None:
    """Output for the user."""
    if is_main_process():
        print(line, flush=True)
