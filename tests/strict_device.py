"""A stand-in for a GPU: tensors whose device is not the CPU, and that fail where a GPU's would meet the CPU's.

Importing this registers the device for the whole process, so tests run `python tests/strict_device.py MODEL` in one of
its own: it ranks, cuts, refits, records, trains and measures a small model on the device, in every way that needs no
kernels of its own, and prints what failed.
"""

import copy
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import models
import secateur

NAME = "strict"


class Backend(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


backend_registration._setup_privateuseone_for_python_backend(NAME, Backend())
torch.autograd.set_multithreading_enabled(False)
torch.accelerator.synchronize = lambda *_: None
DEVICE = torch.device(NAME, 0)
aten = torch.ops.aten
BETWEEN_DEVICES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)


class Strict(torch.Tensor):
    """A tensor of the device; its values are on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> "Strict":
        about = {"strides": values.stride(), "dtype": values.dtype, "storage_offset": values.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, device=DEVICE, **about)
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        made: torch.Tensor = Strict(self.values.detach().clone())
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        return memo.setdefault(id(self), made)

    @property
    def data(self) -> torch.Tensor:
        return Strict(self.values.detach())

    @data.setter
    def data(self, new: "Strict") -> None:
        torch.Tensor.data.__set__(self, new)
        self.values = new.values

    def tolist(self) -> Any:
        return self.values.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.values.untyped_storage()

    def data_ptr(self) -> int:
        return self.values.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy. Use Tensor.cpu() first")

    __array__ = numpy


class Calls(TorchDispatchMode):
    """Sees operations without a tensor of the device, such as those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of an operation, on the device if its tensors are there.

    Raises:
        RuntimeError: some are on the CPU: any in a fused kernel, others than scalars elsewhere, but for indices.
    """
    leaves = tree_leaves((args, kwargs))
    here = [leaf for leaf in leaves if isinstance(leaf, Strict)]
    asked = kwargs.get("device")
    comes = asked is not None and torch.device(asked).type == NAME
    if not here and not comes:
        return func(*args, **kwargs)
    strangers = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Strict)]
    if "fused" not in str(func):
        strangers = [each for each in strangers if each.ndim]
    if func in INDEXED:
        strangers = [each for each in strangers if each.is_floating_point()]
    if here and strangers and func not in BETWEEN_DEVICES:
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {NAME} and cpu")
    plain_args, plain_kwargs = tree_map_only(Strict, lambda leaf: leaf.values, (args, kwargs))
    if comes:
        plain_kwargs |= {"device": torch.device("cpu")}
    found = func(*plain_args, **plain_kwargs)
    written = [each for each in func._schema.arguments if each.alias_info is not None and each.alias_info.is_write]
    if not func._schema.returns or (asked is not None and not comes) or func is aten._local_scalar_dense.default:
        return found
    if written:
        return kwargs[written[0].name] if written[0].kwarg_only else args[0]
    return tree_map_only(torch.Tensor, lambda leaf: leaf if isinstance(leaf, Strict) else Strict(leaf), found)


def values(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.values if isinstance(tensor, Strict) else tensor


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    values(target).copy_(values(source))
    return target


def empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, pinned: Any = None, **_: Any) -> Any:
    return Strict(torch.empty(size, dtype=dtype))


def strided(size: Any, stride: Any, dtype: Any = None, layout: Any = None, device: Any = None, **_: Any) -> Any:
    return Strict(torch.empty_strided(size, stride, dtype=dtype))


for operator, kernel in {"_copy_from": copy_from, "empty.memory_format": empty, "empty_strided": strided}.items():
    torch.library.impl(f"aten::{operator}", "PrivateUse1")(kernel)
Accelerator.device = property(lambda self: DEVICE)  # type: ignore[method-assign, assignment]


OPTIMIZERS = ("adamw", "muon", "adafactor")
WAYS: tuple[dict[str, Any], ...] = (
    {"weight_precision": "bf16"},
    {"offload": ("teacher",)},
    {"gradient_checkpointing": True},
    {"mixed_precision": "bf16"},
    {"lora": secateur.LoraConfig(rank=2)},
    {"validation_every": 1},
    {"accumulation": 2},
)
FLAT = ("diff-pruning", "taylor", "magnitude", "random")
OF_BLOCKS = ("deviation", "replacement", "cosine", "loss-change", "ced", "ent-prog")
SCORING = secateur.ScoringConfig(num_timesteps=4, num_images=8)
EVALUATION = secateur.EvaluationConfig(
    metrics=("loss", "consistency", "frechet", "prdc", "rfid"),
    num_images=8,
    num_inference_steps=2,
    batch_size=4,
    num_real_images=16,
    bootstrap=10,
)


def training(**changes: Any) -> secateur.RecoveryConfig:
    options: dict[str, Any] = {"steps": 2, "batch_size": 4, "objective": "distillation", "warmup_steps": 0}
    return secateur.RecoveryConfig(**options | changes)


def calls(name: str) -> dict[str, Callable[[], object]]:
    """What is tried, by name. Double derivatives of convolutions have kernels that the stand-in does not know."""
    dense = getattr(models, name)()
    pruned = secateur.prune(copy.deepcopy(dense), target="macs=70%", criterion="magnitude", process="ddpm")
    dense, pruned = dense.to(DEVICE), pruned.to(DEVICE)
    about: dict[str, Any] = {"data": "digits", "process": "ddpm", "device": DEVICE}
    convolves = name == "unet"
    criteria = FLAT if convolves else (*FLAT, "gradient-flow", "reconstruction", *OF_BLOCKS)
    once = ("denoising", "distillation", "rms-distillation", "features")
    objectives = once if convolves else (*once, "first-order", "2ndmatch")
    ways = [{"objective": objective, "optimizer": "muon"} for objective in objectives]
    ways += [{"optimizer": optimizer} for optimizer in OPTIMIZERS]

    def finetuned(**changes: Any) -> Callable[[], object]:
        return lambda: secateur.finetune(pruned, teacher=dense, recovery=training(**changes), **about)

    def ranked(criterion: str) -> Callable[[], object]:
        return lambda: secateur.rank(dense, criterion=criterion, scoring=SCORING, **about)

    def by_the_book() -> object:
        book = secateur.record(dense, recovery=training(), book=secateur.BookConfig(num_tuples=16), **about)
        return secateur.finetune(pruned, teacher=book, recovery=training(optimizer="muon"), **about)

    tried: dict[str, Callable[[], object]] = {f"rank by {criterion}": ranked(criterion) for criterion in criteria}
    tried |= {f"finetune, {way}": finetuned(**way) for way in (*ways, *WAYS)}
    tried["compensate"] = lambda: secateur.compensate(pruned, dense, **about)
    tried["record"] = by_the_book
    tried["evaluate"] = lambda: secateur.evaluate(pruned, reference=dense, evaluation=EVALUATION, **about)
    tried["sample"] = lambda: secateur.sample(
        pruned, num_images=2, num_inference_steps=2, process="ddpm", device=DEVICE
    )
    return tried


def main(name: str) -> None:
    torch.set_num_threads(1)  # the model is tiny
    failed = []
    with Calls():
        for what, call in calls(name).items():
            try:
                call()
            except Exception as error:
                traceback.print_exc()
                failed.append(f"{what}: {type(error).__name__}: {str(error).splitlines()[0]}")
    sys.exit("\n".join(failed) or None)


if __name__ == "__main__":
    main(sys.argv[1])
