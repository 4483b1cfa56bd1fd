"""A network in lower precision: half precision, or one byte per weight of linear layers, by torchao."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..base.console import silenced_libraries
from ..base.errors import SecateurError
from ..base.precisions import PrecisionName

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
        cast_saved(model, getattr(torch, name))
        return
    with silenced_libraries():
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
        from torchao.utils import unwrap_tensor_subclass

        quantize_(model, Int8WeightOnlyConfig() if name == "int8" else Float8WeightOnlyConfig())
        unwrap_tensor_subclass(model)  # plain tensors are written raw; torch would pickle torchao's


def cast_saved(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast in place what is saved of `model`, as diffusers does when it loads with `torch_dtype`.

    Parts that the class keeps in float32 have at least that. Buffers that are not saved, such as tables of angles, stay
    as they are: in half precision a large angle is off by radians.
    """
    for name, tensor in saved(model).items():
        tensor.data = tensor.data.to(torch.promote_types(dtype, torch.float32) if stays_whole(model, name) else dtype)


def saved(model: nn.Module) -> dict[str, Tensor]:
    """The floating-point tensors of `model` that are saved, by name."""
    tensors: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def stays_whole(model: nn.Module, name: str) -> bool:
    """Whether diffusers keeps a weight in float32 when it loads `model` in half precision, as it does Wan's norms."""
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()
    return not set(kept).isdisjoint(name.split("."))


def dtype_of(model: nn.Module, default: torch.dtype = torch.float32) -> torch.dtype:
    """The dtype that `model` computes in: that of its first weight with at least two bytes, or `default`.

    Weights that stay in float32 do not count.
    """
    weights = (each for name, each in model.named_parameters() if not stays_whole(model, name))
    return next((each.dtype for each in weights if each.itemsize > 1), default)


def precision_of(model: nn.Module) -> str:
    """The dtype of the stored weights, such as float32; int8 or float8 if linear layers have it."""
    stored = {each.dtype for each in model.parameters()}
    narrow = {torch.int8: "int8", torch.float8_e4m3fn: "float8"}
    return next(
        (name for dtype, name in narrow.items() if dtype in stored), str(dtype_of(model)).removeprefix("torch.")
    )
