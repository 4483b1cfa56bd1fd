"""Where a model is: a folder, a part of a pipeline folder, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypedDict

from huggingface_hub import snapshot_download
from typing_extensions import Unpack

from ..base.errors import ModelError, SecateurError, first_line
from .index import INDEX, components

Component = Literal["unet", "transformer", "transformer_2", "vae"]
COMPONENTS = ("unet", "transformer")
EMBEDDED = ("fashion-unet", "digits-unet", "digits-sit")  # models that come with the package
ASSETS = Path(str(files("secateur"))) / "assets"
OTHER_VARIANTS = ["*.fp16*.safetensors", "*.bf16*.safetensors", "*.non_ema*.safetensors"]


class HubOptions(TypedDict, total=False):
    """As in diffusers: revision of a repository, token, and cache folder."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None


@dataclass(frozen=True)
class Place:
    """The folder of a model, and the pipeline folder and component that it belongs to, if any."""

    folder: Path
    pipeline: Path | None = None
    component: str | None = None

    @property
    def root(self) -> Path:
        """The folder that was downloaded or copied as a whole; links inside it are followed."""
        around = self.folder.parent
        return self.pipeline or (around if (around / INDEX).is_file() else self.folder)


def locate(
    path_or_id: str | Path,
    component: str | None = None,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    whole: bool = False,
    **hub: Unpack[HubOptions],
) -> Place:
    """The place of a model; its files are downloaded from the hub first, with `whole` those of the whole pipeline.

    Args:
        path_or_id: a folder of a model or a pipeline, a hub id, or an embedded model.
        component: part of a pipeline; by default the unet or transformer that it has.
        subfolder: folder of the model or pipeline in the folder or repository.
        variant: variant of the weights to download.
        whole: download all parts of the pipeline.
        hub: revision, token and cache folder of the download.

    Raises:
        ModelError: it does not exist, the hub does not provide it, or its index asks for code.
    """
    folder, name = Path(path_or_id), str(path_or_id)
    inside = Path(subfolder or "")
    if inside.is_absolute() or ".." in inside.parts:
        raise ModelError(f"subfolder is {subfolder}; give a folder inside of {path_or_id}")
    if name in EMBEDDED and not folder.exists():
        folder = ASSETS / name
    if folder.is_dir():
        return _place(folder / inside, component)
    if name.count("/") != 1 or folder.is_absolute() or name.startswith("."):
        raise ModelError(
            f"{path_or_id} is neither a folder nor a hub id such as google/ddpm-cifar10-32{_meant(folder)}"
        )
    try:
        fetch = _fetcher(name, hub)
        # The small files first: they show which weights are needed, and whether the model is supported.
        place = _place(fetch(["*.json"]) / inside, component)
        return _fetched(fetch, place, inside, variant, whole)
    except SecateurError:
        raise
    except Exception as error:
        raise ModelError(
            f"{path_or_id} is no local folder, and the hub did not give it: {first_line(error)}{_meant(folder)}"
        ) from error


def _meant(folder: Path) -> str:
    """For an error message about a folder that is not there: a similar name, or the models beside it."""
    beside = sorted({str(found.parent) for name in ("config.json", INDEX) for found in folder.parent.glob(f"*/{name}")})
    near = get_close_matches(str(folder), (*EMBEDDED, *beside), 1)
    others = beside if folder.parent.name else []
    if near:
        return f"; did you mean {near[0]}?"
    return f"; {folder.parent} holds {', '.join(others)}" if others else ""


def _place(folder: Path, component: str | None) -> Place:
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder")
    if not (folder / INDEX).is_file():
        if component is not None:
            raise ModelError(f"{folder} is a model folder, not a pipeline with a component {component}")
        return Place(folder)
    present = components(folder)
    found = [name for name in (COMPONENTS if component is None else (component,)) if name in present]
    if not found:
        raise ModelError(
            f"{folder / INDEX} lists no {component or ' or '.join(COMPONENTS)}; it has {', '.join(present)}"
        )
    # Some hub folders keep their only component at the root.
    return Place(folder / found[0] if (folder / found[0]).is_dir() else folder, folder, found[0])


def _fetcher(repository: str, hub: Mapping[str, Any]) -> Callable[..., Path]:
    given = {name: value for name, value in hub.items() if value is not None}

    def fetch(wanted: list[str], unwanted: list[str] | None = None) -> Path:
        options = given if unwanted is None else given | {"ignore_patterns": unwanted}
        return Path(snapshot_download(repository, allow_patterns=wanted, **options))

    return fetch


def _fetched(fetch: Callable[..., Path], place: Place, inside: Path, variant: str | None, whole: bool) -> Place:
    weights = "*.safetensors" if variant is None else f"*.{variant}*.safetensors"
    parts = [weights]
    if place.pipeline is not None and place.folder != place.pipeline:
        parts = [f"*/{weights}", "tokenizer*/*", "processor*/*"] if whole else [f"{place.component}/{weights}"]
    wanted = ["*.json", *((inside / part).as_posix() for part in parts)]
    root = fetch(wanted, OTHER_VARIANTS if variant is None else None)
    base, folder = root / inside, place.folder.relative_to(place.pipeline or place.folder)
    models = {base / folder, *(file.parent for file in base.glob("*/config.json") if whole)}
    # There is only a variant, or a part lacks the one that was asked for.
    if without := [model for model in sorted(models) if not any(model.glob("*.safetensors"))]:
        root = fetch(["*.json", *((model.relative_to(root) / "*.safetensors").as_posix() for model in without)])
    base = root / inside
    return replace(place, folder=base / folder, pipeline=None if place.pipeline is None else base)
