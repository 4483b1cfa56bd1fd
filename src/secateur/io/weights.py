"""The weights of a model folder: one or several safetensors files, whose headers are read before the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor

from ..base.errors import ModelError, SecateurError
from ..base.records import read_record
from .files import check_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
COUNTERS = "I64"  # batch counters of batch norms

_ONE_FILE = re.compile(r"diffusion_pytorch_model(?:\.(\w+))?\.safetensors")
_INDEX = re.compile(r"diffusion_pytorch_model\.safetensors\.index(?:\.(\w+))?\.json")
_SHARD = re.compile(r"diffusion_pytorch_model.*-\d{5}-of-\d{5}.*\.safetensors")


@dataclass(frozen=True)
class Entry:
    """The header entry of one tensor, which safetensors checks against the size of the file."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class ShardIndex(msgspec.Struct):
    """`diffusion_pytorch_model.safetensors.index.json`."""

    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


def is_weights(name: str) -> bool:
    """Whether a file of this name is a safetensors file of a diffusers model, or the index of several."""
    return any(pattern.fullmatch(name) for pattern in (_ONE_FILE, _INDEX, _SHARD))


def headers(folder: Path, root: Path, variant: str | None = None) -> dict[str, Entry]:
    """The header entries of all tensors of the model in `folder`, a part of the folder `root`, by name.

    Args:
        folder: folder of the model.
        root: root of the whole download; links inside it are followed.
        variant: "fp16" reads `diffusion_pytorch_model.fp16.safetensors`; None reads the plain files, or those of the
            only variant.

    Raises:
        ModelError: there are no such weights, or two sets of them; or an index names something other than safetensors
            beside it.
    """
    found: dict[str, Entry] = {}
    for file in _files(folder, variant):
        with safe_open(check_file(file, root), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                described = opened.get_slice(name)
                found[name] = Entry(file, tuple(described.get_shape()), described.get_dtype())
    return found


def stored_tensors(folder: Path, root: Path) -> int:
    """How many tensors the safetensors files of a component hold, those of all its variants together."""
    count = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(check_file(file, root), "pt") as opened:
            count += len(opened.keys())
    return count


def common_dtype(entries: Mapping[str, Entry]) -> torch.dtype | None:
    """The common dtype of all tensors except counters, or None."""
    dtypes = {entry.dtype for entry in entries.values()} - {COUNTERS}
    return DTYPES[dtypes.pop()] if len(dtypes) == 1 else None


def read(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """The tensors of `headers`.

    They are copied to torch's own alignment: kernels may round differently at odd file offsets.
    """
    tensors: dict[str, Tensor] = {}
    for file in sorted({entry.file for entry in entries.values()}):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name).clone() for name, e in entries.items() if e.file == file}
    return tensors


def _files(folder: Path, variant: str | None) -> list[Path]:
    names = sorted(path.name for path in folder.iterdir())
    single, sharded = _by_variant(names, _ONE_FILE), _by_variant(names, _INDEX)
    present = sorted({*single, *sharded}, key=str)
    chosen = variant
    if variant is None and None not in present and len(present) == 1:
        chosen = present[0]
    if chosen not in present:
        raise ModelError(f"{folder} holds no {_named(chosen)}{_instead(present, names)}")
    index = folder / sharded[chosen] if chosen in sharded else None
    if index is None:
        return [folder / single[chosen]]
    shards = shards_of(index)
    whole = all((folder / shard).is_file() for shard in shards)
    if chosen not in single:
        return [folder / shard for shard in shards]
    if not whole:  # a leftover index
        return [folder / single[chosen]]
    raise ModelError(f"{folder} holds its weights twice: {single[chosen]}, and what {index.name} names; remove one")


def _by_variant(names: Iterable[str], pattern: re.Pattern[str]) -> dict[str | None, str]:
    return {match[1]: match[0] for match in map(pattern.fullmatch, names) if match}


def shards_of(index: Path) -> list[str]:
    """The files that an index of weights names.

    Raises:
        ModelError: it is damaged, or names something other than safetensors beside it.
    """
    try:
        shards = sorted(set(read_record(ShardIndex, index).weight_map.values()))
    except SecateurError as error:
        raise ModelError(str(error)) from error
    for shard in shards:
        if Path(shard).name != shard or shard.startswith(".") or not shard.endswith(".safetensors"):
            raise ModelError(f"{index} names {shard}; weights are read from .safetensors files beside it only")
    return shards


def _named(variant: str | None) -> str:
    return WEIGHTS if variant is None else f"weights of variant {variant}"


def _instead(present: Iterable[str | None], names: Iterable[str]) -> str:
    """The available variants, or why there are no weights."""
    variants = [variant for variant in present if variant is not None]
    if variants:
        return f"; say which variant: {', '.join(variants)}"
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return "; other files may hold a pickle, which is never opened: convert them to safetensors"
    return ""
