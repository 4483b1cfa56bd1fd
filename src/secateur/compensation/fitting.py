"""The record of layers that were given new weights, kept on disk for resuming."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..base.console import Advance
from ..base.distributed import is_main_process, wait_for_everyone
from ..base.errors import SecateurError
from ..base.files import atomic_file, read_json, write_json
from ..base.fingerprint import fingerprint
from ..results.compensation import Reader

KEY = "compensation.json"  # identifies what the layers in a folder were fitted for


class Fitting:
    """The layers fitted so far; with a `folder`, they are restored from there after a stop."""

    def __init__(self, advance: Advance, folder: Path | None = None) -> None:
        self.readers: dict[str, Reader] = {}
        self.left: dict[str, str] = {}  # layers that were not refitted, and why
        self._advance, self._folder = advance, folder

    def fitted_before(self, layers: Mapping[str, nn.Module]) -> bool:
        """Restore these layers if a stopped run had fitted all of them; return whether it had."""
        if self._folder is None or not all(_path(self._folder, name).is_file() for name in layers):
            return False
        for name, layer in layers.items():
            with safe_open(_path(self._folder, name), "pt") as kept, torch.no_grad():
                for key, parameter in layer.named_parameters():
                    parameter.copy_(kept.get_tensor(key))
                self.readers[name] = Reader(**json.loads(kept.metadata()["reader"]))
        self._advance(len(layers), "")
        return True

    def keep(self, layers: Mapping[str, nn.Module], readers: Mapping[str, Reader]) -> None:
        """Keep the new weights of layers, and note their errors."""
        self.readers.update(readers)
        if self._folder is not None and is_main_process():
            for name, reader in readers.items():
                with atomic_file(_path(self._folder, name)) as temporary:
                    weights = {key: value.detach().contiguous() for key, value in layers[name].named_parameters()}
                    save_file(weights, temporary, {"reader": json.dumps(asdict(reader))})
        self._advance(len(readers), next(iter(readers), ""))

    def leave(self, name: str, why: str) -> None:
        """Note that a layer is not refitted."""
        self.left[name] = why
        self._advance(1, name)


def open_folder(folder: Path, made_for: Any) -> None:
    """Prepare `folder` for layers that are fitted for `made_for`, a JSON value.

    Raises:
        SecateurError: it holds layers that were fitted for something else.
    """
    key = {"made_for": fingerprint(made_for)}
    if is_main_process():
        if (folder / KEY).is_file() and read_json(folder / KEY) != key:
            raise SecateurError(f"{folder} holds layers refitted with other settings or models; remove it")
        write_json(folder / KEY, key)
    wait_for_everyone(on_cpu=True)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"
