"""Fingerprints: short names that change when any of the inputs of a result change."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .shards import whole

WHOLE = 16 * 1024  # files up to this many bytes are read completely
SAMPLE = 4 * 1024  # bytes read of larger files, at the beginning, in the middle and at the end


def files_fingerprint(paths: Iterable[Path], root: Path) -> str:
    """Changes when a file below `root` is added, removed, renamed or replaced: by names, sizes and contents.

    Of large files, the beginning, middle and end are read, where formats keep tables and checksums. Modification times
    do not count, so a copy has the same fingerprint.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(os.fsencode(path.relative_to(root)) + f"\0{size}\0".encode())
        with path.open("rb", buffering=0) as file:
            if size <= WHOLE:
                digest.update(file.read(WHOLE))
                continue
            for start in (0, (size - SAMPLE) // 2, size - SAMPLE):
                file.seek(start)
                digest.update(file.read(SAMPLE))
    return digest.hexdigest()


def fingerprint(about: Any) -> str:
    """Sixteen hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Changes with any name, shape, dtype or number."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(whole(tensor.detach()).cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def model_fingerprint(model: nn.Module, process: object) -> str:
    """Changes with the class of `model`, with its config but for where it came from, with any tensor of it, and with
    the text of `process`."""
    config = getattr(model, "config", None)
    public = {key: value for key, value in config.items() if key[0] != "_"} if isinstance(config, Mapping) else {}
    return fingerprint([type(model).__name__, public, repr(process), tensors_fingerprint(model.state_dict())])
