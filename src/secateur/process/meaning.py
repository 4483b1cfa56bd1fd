"""The meaning of a scheduler config: configs that are written differently may describe the same process."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection
from typing import Any

from torch import Tensor

Meaning = tuple[tuple[str, Any], ...]


def settings_of(scheduler: Any, apart_from: Collection[str]) -> dict[str, Any]:
    """The settings of `scheduler` with defaults filled in, without versions and unrelated keys."""
    names = inspect.signature(type(scheduler)).parameters.keys() - set(apart_from)
    return {name: scheduler.config[name] for name in names if name in scheduler.config}


def digest_of(values: Tensor) -> str:
    """Sixteen hexadecimal digits of the numbers in a tensor."""
    return hashlib.sha256(values.double().numpy().tobytes()).hexdigest()[:16]


def as_meaning(settings: dict[str, Any]) -> Meaning:
    """Settings in a canonical order and form, for comparing and printing."""
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in sorted(settings.items()))
