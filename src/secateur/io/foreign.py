"""Calls into other libraries: errors become one line, and the size of what they build is limited."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging
from torch import nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ..base.errors import ModelError, SecateurError, StructureError, is_out_of_memory

MODULES_PER_TENSOR = 10  # few modules have no tensors of their own: lists, activations, dropout
LARGEST_SIDE = 4096  # of a sample: memory depends on it, and the weights do not show it
BUFFERS = 64 * 2**20  # bytes of tables that weight files do not contain: positions, frequencies


@contextmanager
def loading(place: str | Path, what: str = "cannot be loaded") -> Iterator[None]:
    """Turn errors of other libraries inside the block into one line that names `place`.

    Raises:
        ModelError: the block raised anything but an out-of-memory error.
    """
    try:
        yield
    except ModelError:
        raise
    except StructureError as error:
        raise ModelError(f"{place} {what}: {error}") from error
    except SecateurError as error:
        raise ModelError(str(error)) from error
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
            raise
        raise ModelError(f"{place} {what}: {said_by(error)}") from error


def said_by(error: BaseException) -> str:
    """The first two lines of an error, joined: torch names what does not fit in the second."""
    lines = (str(error).strip() or repr(error)).splitlines()
    return " ".join(line.strip() for line in lines[:2])


@contextmanager
def at_most(tensors: int, buffer_bytes: int = BUFFERS) -> Iterator[None]:
    """Stop the construction of a module that has far more tensors than its weights file.

    Raises:
        ValueError: there are more than `tensors` parameters, far more modules, or larger buffers.
    """
    counts = {"parameters": 0, "modules": 0, "bytes of buffers": 0}
    limits = {"parameters": tensors, "modules": MODULES_PER_TENSOR * tensors, "bytes of buffers": buffer_bytes}

    def add(what: str, amount: int) -> None:
        counts[what] += amount
        if counts[what] > limits[what]:
            raise ValueError(f"its config asks for more than {limits[what]:,} {what}, which its weights do not have")

    hooks = [
        register_module_parameter_registration_hook(lambda *_: add("parameters", 1)),
        register_module_module_registration_hook(lambda *_: add("modules", 1)),
        register_module_buffer_registration_hook(
            lambda module, name, value: add("bytes of buffers", 0 if value is None else value.nbytes)
        ),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def hollow(architecture: type[Any], config: Mapping[str, Any], tensors: int) -> nn.Module:
    """A model of `config` on the meta device, buffers included.

    Raises:
        ValueError: as `at_most`; or an implausible sample size, or true or false for a number.
    """
    for name, parameter in inspect.signature(architecture.__init__).parameters.items():
        is_number = isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
        if is_number and isinstance(config.get(name), bool):
            raise ValueError(f"its {name} is {config[name]}; give a number")
    size = config.get("sample_size")
    sides = size if isinstance(size, list | tuple) else [size, size]
    plausible = all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in sides) and len(sides) > 1
    if size is not None and not plausible:
        raise ValueError(f"its sample_size is {size}; give sides from 1 to {LARGEST_SIDE}")
    with at_most(tensors), torch.device("meta"), quiet():
        return architecture.from_config(explicit(config))


def explicit(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with all its values: for configs in memory, diffusers leaves out defaults."""
    return {name: value for name, value in config.items() if name != "_use_default_values"}


@contextmanager
def quiet(text: bool = False) -> Iterator[None]:
    """Hide warnings and progress bars of diffusers, and with `text` those of transformers."""
    loggers = [diffusers_logging]
    if text and importlib.util.find_spec("transformers") is not None:
        loggers.append(importlib.import_module("transformers.utils.logging"))
    before = [(each, each.get_verbosity(), each.is_progress_bar_enabled()) for each in loggers]
    for each in loggers:
        each.set_verbosity_error()
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each, verbosity, bars in before:
            each.set_verbosity(verbosity)
            if bars:
                each.enable_progress_bar()
