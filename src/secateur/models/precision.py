"""A network in lower precision: half precision, or one byte per weight of linear layers, by torchao."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from ..base.console import silenced_libraries
from ..base.errors import SecateurError

PrecisionName = Literal["bfloat16", "float16", "int8", "float8"]
BYTES: tuple[PrecisionName, ...] = ("int8", "float8")  # linear weights alone, a scale for each row


def in_precisions(model: nn.Module, names: Sequence[PrecisionName]) -> dict[str, nn.Module]:
    """Copies of `model`, by precision.

    Raises:
        SecateurError: as `check_precision`.
    """
    found = {}
    for name in names:
        check_precision(name)
        found[str(name)] = copy.deepcopy(model)
        cast(found[str(name)], name)
    return found


def check_precision(name: str) -> None:
    """Check that a precision is available.

    Raises:
        SecateurError: it needs torchao, which is not installed.
    """
    if name not in BYTES:
        return
    try:
        with silenced_libraries():
            importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise SecateurError(f"{name} needs torchao: pip install 'secateur[int8]' ({error})") from error


def cast(model: nn.Module, name: PrecisionName) -> None:
    """Cast `model` in place."""
    if name not in BYTES:
        nn.Module.to(model, getattr(torch, name))  # avoids diffusers' warning
        return
    with silenced_libraries():
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
        from torchao.utils import unwrap_tensor_subclass

        quantize_(model, Int8WeightOnlyConfig() if name == "int8" else Float8WeightOnlyConfig())
        unwrap_tensor_subclass(model)  # plain tensors are written raw; torch would pickle torchao's


def dtype_of(model: nn.Module, default: torch.dtype = torch.float32) -> torch.dtype:
    """The dtype that `model` computes in: that of its first weight with at least two bytes, or `default`.

    Weights that diffusers keeps in float32 when it loads a model in half precision (Wan's) do not count.
    """
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    weights = (each for name, each in model.named_parameters() if not any(part in name for part in kept))
    return next((each.dtype for each in weights if each.itemsize > 1), default)


def precision_of(model: nn.Module) -> str:
    """The dtype of the stored weights, such as float32; int8 or float8 if linear layers have it."""
    stored = {each.dtype for each in model.parameters()}
    narrow = {torch.int8: "int8", torch.float8_e4m3fn: "float8"}
    return next(
        (name for dtype, name in narrow.items() if dtype in stored), str(dtype_of(model)).removeprefix("torch.")
    )
