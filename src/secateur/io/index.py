"""Checking a pipeline folder: the classes in `model_index.json`, and that it asks for no code.

This happens before a loader of diffusers or transformers gets the folder: these import any module that an index names,
and unpickle any file that an index of weights names.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers

from ..base.errors import ModelError, SecateurError
from ..base.records import read_record
from .files import check_file, checked
from .weights import shards_of

INDEX = "model_index.json"
AUTOENCODERS = ("vae", "vqvae")
LIBRARIES = ("diffusers", "transformers")


def components(pipeline: Path) -> dict[str, tuple[str, str]]:
    """Library and class of each component that a pipeline folder has.

    Raises:
        ModelError: the index is damaged, or names something other than classes of diffusers and transformers.
    """
    found, source = {}, pipeline / INDEX
    for name, value in _index(pipeline).items():
        if not isinstance(value, list) or not any(isinstance(each, str) for each in value) or name.startswith("_"):
            continue  # a setting, or a component that is left out
        if not _is_name(name) or len(value) != 2 or not all(isinstance(each, str) for each in value):
            raise ModelError(f"{source} is damaged: {name} is no component with a library and a class")
        library, kind = value
        if not _is_trusted(library, kind):
            taken = f"{source} takes {name} from {library}.{kind}"
            raise ModelError(f"{taken}; only classes of diffusers and transformers are loaded")
        found[name] = (library, kind)
    return found


def pipeline_class(pipeline: Path) -> str:
    """The name of the pipeline's class in diffusers.

    Raises:
        ModelError: the index is damaged, or names another class.
    """
    name = _index(pipeline).get("_class_name")
    if not isinstance(name, str) or not _is_name(name) or name not in dir(diffusers):
        raise ModelError(f"{pipeline / INDEX} names the pipeline {name}, which is none of diffusers; no code is run")
    return name


def check_pipeline(pipeline: Path) -> None:
    """Check that the folder is safe for the loaders of diffusers and transformers.

    Raises:
        ModelError: as `components`, `pipeline_class`, `checked` and `check_no_code`; an index of weights that names
            anything but safetensors.
    """
    pipeline_class(pipeline)
    parts, files = components(pipeline), checked(pipeline)
    _check_indices(files)
    foreign = {name for name, (library, _) in parts.items() if library != "diffusers"}
    check_no_code(path for path in files if path.parent.name in foreign and path.parent.parent == pipeline)


def autoencoder_of(pipeline: Path) -> Path | None:
    """The folder of the autoencoder whose latents the pipeline works on; None for one of pixels."""
    present = components(pipeline)
    return next((pipeline / name for name in AUTOENCODERS if name in present), None)


def check_transformers(name_or_folder: str | Path) -> None:
    """Check that a folder is safe for the loader of transformers; for a hub id, `trust_remote_code=False` suffices.

    Raises:
        ModelError: as `check_pipeline`, for one model's folder.
    """
    if (folder := Path(name_or_folder)).is_dir():
        files = checked(folder)
        _check_indices(files)
        check_no_code(files)


def check_no_code(files: Iterable[Path]) -> None:
    """Check that configs name no code that transformers would run, or ask to run.

    Raises:
        ModelError: one of `files` is a config with `auto_map`.
    """
    for path in files:
        if path.name.endswith("config.json") and "auto_map" in read_object(path):
            raise ModelError(f"{path} asks for code of its own (auto_map), which is not run")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        ModelError: it is missing, or holds something else.
    """
    try:
        return read_record(dict[str, Any], path)
    except SecateurError as error:
        raise ModelError(str(error)) from error


def _check_indices(files: Iterable[Path]) -> None:
    for path in files:
        if ".safetensors.index" in path.name:
            shards_of(path)


def _index(pipeline: Path) -> dict[str, Any]:
    return read_object(check_file(pipeline / INDEX, pipeline))


def _is_trusted(library: str, kind: str) -> bool:
    if library == "secateur":
        return _is_name(kind) and kind.startswith("Pruned")
    known = library in LIBRARIES or (_is_name(library) and library in dir(diffusers.pipelines))  # as the safety checker
    return known and _is_name(kind)


def _is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text) and not text.startswith("_")
