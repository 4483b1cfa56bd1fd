"""What a result on disk was made from, as a short name: it changes when any of it does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn


def files_fingerprint(paths: Iterable[Path], root: Path) -> str:
    """Changes when a file below `root` is added, removed, renamed or written: by names, sizes and times.

    Contents are not read, since weights and image folders are large; a copy with new times has another fingerprint.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        stat = path.stat()
        digest.update(f"{path.relative_to(root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def fingerprint(about: Any) -> str:
    """Sixteen hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_fingerprint(model: nn.Module, process: object) -> str:
    """Changes with the class of `model`, with `process` as it prints itself, and with any tensor of the model."""
    digest = hashlib.sha256(f"{type(model).__name__}\0{process!r}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
