"""Setting up accelerate: on the device of the model, or on those of a launcher's processes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from ..base.console import note
from ..base.distributed import process_count, process_group
from ..base.errors import TrainingError, first_line
from ..base.units import number_of
from ..structure.precision import full_precision, is_product_precision_chosen, rounded_products
from .config import RecoveryConfig

SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")


def precision_on(config: RecoveryConfig, device: torch.device) -> Literal["no", "bf16", "fp16"]:
    """The mixed precision of `config` on `device`; auto means bf16 on GPUs that compute in it."""
    if config.mixed_precision == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "no" if config.mixed_precision == "float32" else config.mixed_precision


def has_tf32(device: torch.device) -> bool:
    """Whether `device` multiplies float32 in TF32, as NVIDIA's do from compute capability 8.0."""
    return device.type == "cuda" and torch.cuda.is_tf32_supported()


def products_on(
    config: RecoveryConfig, device: torch.device, dtype: torch.dtype
) -> Callable[[], AbstractContextManager[None]]:
    """The context of every step that trains weights of `dtype`: how their products are taken. TF32 is said."""
    if dtype != torch.float32 or precision_on(config, device) != "no" or not has_tf32(device):
        return nullcontext
    if config.mixed_precision == "float32":
        return full_precision
    if is_product_precision_chosen():
        return nullcontext
    note("recovery: passes run in TF32, which this device has; --recovery.mixed-precision float32 turns it off")
    return rounded_products


def check_accelerator(config: RecoveryConfig, device: torch.device) -> None:
    """Check that `make_accelerator` will succeed, before long work starts.

    Raises:
        TrainingError: a tracker is missing or broken, the device has no fp16, the batch is not divisible by the
            processes, or its parts by every_n_samples; or environment variables tell accelerate to shard the model.
    """
    for name in SHARDING:
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise TrainingError(
                f"{name} is set, and recovery is sharded by its own setting only; unset it, and give "
                "--recovery.parallel fsdp"
            )
    _check_parallel(config)
    available = sorted(str(tracker) for tracker in get_available_trackers())
    for tracker in config.report_to:
        if tracker not in available:  # accelerate would ignore it silently
            known = ", ".join(available) or "none is"
            raise TrainingError(f"tracker {tracker!r} is unknown or not installed; installed: {known}")
    for tracker in set(config.report_to) - {"tensorboard"}:  # which accelerate takes from one of two packages
        try:
            import_module(tracker)
        except ImportError as error:
            raise TrainingError(
                f"tracker {tracker!r} cannot be imported: {first_line(error)}; install it again, or leave it out"
            ) from error
    precision = precision_on(config, device)
    if precision == "fp16" and config.parallel != "ddp":
        raise TrainingError(
            f"mixed precision fp16 does not go with recovery.parallel {config.parallel}; use bf16, or no"
        )
    if precision == "fp16" and device.type == "cpu":
        raise TrainingError("mixed precision fp16 does not work on a CPU; use bf16, or no")
    parts = config.accumulation * process_count()
    if config.batch_size % parts:
        raise TrainingError(
            f"batch size {config.batch_size} is not divisible by {process_count()} processes x "
            f"accumulation {config.accumulation}; use a multiple of {parts}"
        )
    share, every_n = config.batch_size // parts, config.jacobian.every_n_samples
    if parts > 1 and share % every_n:  # each part would start counting again
        raise TrainingError(
            f"jacobian every_n_samples {every_n} does not divide micro-batches of "
            f"{number_of(share, 'image')}; give one that does"
        )


def _check_parallel(config: RecoveryConfig) -> None:
    if config.parallel == "ddp":
        return
    processes = process_count()
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    if processes == 1:
        raise TrainingError(
            f"recovery.parallel {config.parallel} divides weights between processes, and there is only one; start "
            "several with torchrun, or leave it out"
        )
    if config.parallel == "hsdp" and (processes % local or processes == local):
        raise TrainingError(
            f"recovery.parallel hsdp keeps a replica on every node, and there are {local} of {processes} processes on "
            "a node; use fsdp"
        )


@contextmanager
def own_accelerate() -> Iterator[None]:
    """Let an `Accelerator` made inside the block choose device and precision independently of the caller's.

    accelerate shares both within a process; the caller's are restored after the block.
    """
    shared = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    kept = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, before in zip(shared, kept, strict=True):
            state.clear()
            state.update(before)


def make_accelerator(config: RecoveryConfig, folder: Path, device: torch.device) -> Accelerator:
    """The accelerator of a run in `folder`, with its trackers started.

    Raises:
        TrainingError: as `check_accelerator`; or accelerate refuses the precision, or was launched for anything but
            DDP.
    """
    check_accelerator(config, device)
    _make_current(device)
    precision = precision_on(config, device)
    with _without_others_settings():
        process_group(on_cpu=device.type == "cpu")
        try:
            accelerator = Accelerator(
                cpu=device.type == "cpu",
                mixed_precision=precision,
                log_with=list(config.report_to) or None,
                project_dir=folder,
                kwargs_handlers=[
                    DistributedDataParallelKwargs(gradient_as_bucket_view=True)
                ],  # else it keeps two copies
            )
        except ValueError as error:
            raise TrainingError(f"mixed precision {precision} does not work here: {error}") from error
    if config.mixed_precision == "auto" and precision != "no":
        note(f"recovery: passes run in {precision}, which this device has; --recovery.mixed-precision no turns it off")
    kind = accelerator.distributed_type
    if kind != DistributedType.NO and not kind.name.startswith("MULTI_"):
        raise TrainingError(
            f"recovery does not run on accelerate's {kind.name}; launch it for plain multi-GPU, and give "
            "--recovery.parallel fsdp to shard it"
        )
    if config.report_to:
        accelerator.init_trackers("secateur", config={"recovery": json.dumps(asdict(config))})
    return accelerator


def log_images(accelerator: Accelerator, images_NCHW: Tensor, step: int) -> None:
    """Log images in [-1, 1] to every tracker that accepts images."""
    pixels = ((images_NCHW.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"validation": pixels.numpy()}, step=step)
        elif hasattr(tracker, "log_images"):
            tracker.log_images({"validation": list(pixels.permute(0, 2, 3, 1).squeeze(-1).numpy())}, step=step)


@contextmanager
def _without_others_settings() -> Iterator[None]:
    """Hide ACCELERATE_... variables inside the block: they are settings for other programs (accumulation, dynamo)."""
    others = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        os.environ.update(others)


def _make_current(device: torch.device) -> None:
    """Make `device` the current one, which accelerate uses; a launcher of several processes gives each its own."""
    if device.type not in ("cpu", "mps") and device.index is not None and process_count() == 1:
        make = getattr(torch.accelerator, "set_device_index", torch.cuda.set_device)  # torch 2.6 lacks the first
        make(device.index)
