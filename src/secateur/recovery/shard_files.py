"""Tensors of sharded runs on disk: each process writes its own shards as safetensors, and reads what it needs.

Done by torch.distributed.checkpoint in its safetensors format, which no pickle is part of. Shards of any number of
processes are read into those of any other, or into whole tensors.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from ..base.console import silenced_libraries
from ..base.distributed import from_main, is_main_process, patient_group, process_count
from ..base.errors import SecateurError, first_line
from ..base.files import read_json

# Each process writes about so many files, of at least and at most so many bytes.
FILES, LEAST, MOST = 16, 2**24, 2**30

Described = dict[str, tuple[torch.Size, torch.dtype]]


def write_shards(tensors: dict[str, Tensor], folder: Path, **options: Any) -> None:
    """Write the shards of this process, and its share of whole tensors; every process must call this.

    They go into several files, one after the other: torch keeps two copies of a file while it writes it. `options` are
    those of torch's writer.

    Raises:
        SecateurError: some process could not write.
    """
    sizes = {name: value.numel() * value.itemsize for name, value in tensors.items()}
    share = sum(sizes.values()) // process_count()
    most, total, files = process_count() * min(MOST, max(LEAST, share // FILES)), 0, {}
    for name, size in sizes.items():
        files[name] = total // most + 1
        total += size
    writer = HuggingFaceStorageWriter(str(folder), files, save_distributed=True, **options)
    try:
        dcp.save(tensors, storage_writer=writer, process_group=patient_group())
    except CheckpointException as error:
        raise SecateurError(f"cannot write {folder}: {_first(error)}") from error


def join_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write sharded tensors to `folder` as whole ones; every process must call this.

    Each writes its shards, and the main process joins them, a tensor at a time.

    Args:
        tensors: with at least one dimension; torch (2.13) joins no scalars.
        folder: on a disk that all processes see; what it holds is replaced.

    Raises:
        SecateurError: some process could not write.
    """
    from_main(partial(shutil.rmtree, folder, ignore_errors=True))  # of a killed run
    write_shards(tensors, folder, enable_consolidation=True)
    if is_main_process():
        shutil.rmtree(folder / "sharded")


def joined(folder: Path) -> dict[str, Tensor]:
    """The tensors that `join_shards` wrote, mapped from their files, which must stay as long as they are in use.

    They take memory where they are read or changed; the files do not change with them.
    """
    files = dict.fromkeys(read_json(folder / "model.safetensors.index.json")["weight_map"].values())
    return {name: value for file in files for name, value in load_file(folder / file).items()}


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
            group = None if alone else patient_group()
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), process_group=group, no_dist=alone)
    except CheckpointException as error:
        raise ValueError(_first(error)) from error


def _first(error: CheckpointException) -> str:
    """What went wrong in the first process in which something did."""
    return first_line(next((failure[0] for failure in error.failures.values()), error))
