"""Tensors of sharded runs on disk: each process writes its own shards as safetensors, and reads what it needs.

Done by torch.distributed.checkpoint in its safetensors format, which no pickle is part of. Shards of any number of
processes are read into those of any other, or into whole tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from ..base.console import silenced_libraries
from ..base.errors import SecateurError, first_line

Described = dict[str, tuple[torch.Size, torch.dtype]]


def write_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the shards of this process, and its share of whole tensors; every process must call this.

    Raises:
        SecateurError: some process could not write.
    """
    try:
        dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
    except CheckpointException as error:
        raise SecateurError(f"cannot write {folder}: {_first(error)}") from error


def described(folder: Path) -> Described:
    """Size and dtype of every tensor whose shards are in `folder`."""
    found = cast(dict[str, Any], HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)
    return {
        name: (each.size, each.properties.dtype)
        for name, each in found.items()
        if isinstance(each, TensorStorageMetadata)
    }


def read_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill `tensors`, which may be sharded; then every process must call this.

    Raises:
        ValueError: a tensor is missing, has another size, or cannot be read.
    """
    alone = not any(isinstance(each, DTensor) for each in tensors.values())
    try:
        with silenced_libraries():  # it warns that one process is alone
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
    except CheckpointException as error:
        raise ValueError(_first(error)) from error


def _first(error: CheckpointException) -> str:
    """What went wrong in the first process in which something did."""
    return first_line(next((failure[0] for failure in error.failures.values()), error))
