"""Conditions: keyword arguments of a network beside the noisy sample, one row per sample.

A name is that of an argument, such as `class_labels` or `encoder_hidden_states`; a dot leads into a mapping, as in
`added_cond_kwargs.text_embeds` of SDXL. `null` conditions hold one row per name, without the batch axis, for "no
condition" in dropout and guidance: a label or an encoded empty prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Conditions = Mapping[str, Tensor]
LABELS = "class_labels"
UNCONDITIONAL: Conditions = {}


def rows(conditions: Conditions, index: Tensor | slice) -> dict[str, Tensor]:
    """The rows at `index` of every condition."""
    return {name: value[index] for name, value in conditions.items()}


def repeated(conditions: Conditions, count: int) -> dict[str, Tensor]:
    """All rows repeated `count` times, in the order of `Tensor.repeat`."""
    return {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in conditions.items()}


def moved(conditions: Conditions, device: torch.device | str) -> dict[str, Tensor]:
    """The conditions on `device`."""
    return {name: value.to(device) for name, value in conditions.items()}


def dropped(conditions: Conditions, where_B: Tensor, null: Conditions) -> dict[str, Tensor]:
    """The conditions with the row of `null` where `where_B` holds, in a dtype that holds both; names that are not in
    `null` are unchanged."""

    def replaced(value: Tensor, by: Tensor) -> Tensor:
        dtype = torch.promote_types(value.dtype, by.dtype)  # bfloat16 has numbers that float16 has not
        return torch.where(where_B.view(-1, *[1] * (value.ndim - 1)), by.to(value.device, dtype), value.to(dtype))

    return {name: replaced(value, null[name]) if name in null else value for name, value in conditions.items()}


def without_labels(conditions: Conditions) -> dict[str, Tensor]:
    """All conditions but the class labels."""
    return {name: value for name, value in conditions.items() if name != LABELS}


def arguments(conditions: Conditions, dtype: torch.dtype) -> dict[str, Any]:
    """Keyword arguments of the network, floating-point ones in its dtype."""
    found: dict[str, Any] = {}
    for name, value in conditions.items():
        outer, _, inner = name.partition(".")
        value = value.to(dtype) if value.is_floating_point() else value
        if inner:
            found.setdefault(outer, {})[inner] = value
        else:
            found[name] = value
    return found
