"""A stand-in for a device without float64 (Apple's MPS): tensors that report this device and refuse what it refuses."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")  # any but the CPU that torch knows everywhere


class Elsewhere(torch.Tensor):
    """A tensor of the device; its values are on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "Elsewhere":
        if values.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as it has none")
        made = torch.Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=DEVICE
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        strangers = [
            value
            for value in given
            if not isinstance(value, Elsewhere) and value.ndim and value.dtype.is_floating_point
        ]
        device = torch.device(kwargs.pop("device", None) or DEVICE)
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if strangers and not copies:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, found mps and cpu")
        plain_args, plain_kwargs = tree_map_only(Elsewhere, lambda value: value.values, (args, kwargs))
        found = func(*plain_args, **plain_kwargs)
        if func is torch.ops.aten.copy_.default:
            return args[0]
        if device.type == "cpu" or func is torch.ops.aten._local_scalar_dense.default:
            return found
        return tree_map_only(torch.Tensor, Elsewhere, found)

    __torch_function__ = torch._C._disabled_torch_function_impl


class Factories(TorchDispatchMode):
    """Creates tensors of the device if it is requested."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        inside = any(isinstance(value, Elsewhere) for value in tree_leaves((args, kwargs)))
        if inside or torch.device(kwargs.get("device") or "cpu").type != DEVICE.type:
            return func(*args, **kwargs)
        return Elsewhere(func(*args, **{**kwargs, "device": torch.device("cpu")}))
