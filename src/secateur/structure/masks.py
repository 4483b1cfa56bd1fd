"""Soft masks on a live model: with 0/1 masks the output equals that of the model with those units removed.

Masks act through forward hooks that read them at every call, so a schedule may change them between steps. They do not
change parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from .attributes import CONVOLUTIONS
from .dims import Block, Cut, Structure
from .streams import first_argument, pick, returned_tensors, streams_of

Masks = Mapping[str, Tensor]  # dim name -> (units,), block name -> (1,), values in [0, 1]; names left out count as 1
Pieces = list[tuple[str, int, int]]  # dim name, offset, width


def masks_of(cut: Cut, structure: Structure, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The 0/1 masks of a cut."""
    return {name: torch.tensor(values, device=device) for name, values in cut.masks(structure).items()}


@contextmanager
def masked(model: nn.Module, structure: Structure, masks: Masks) -> Iterator[None]:
    """Run `model` with `masks` inside the block."""
    handles = []
    for (module_name, role), pieces in _pieces_by_module(structure, masks).items():
        module = model.get_submodule(module_name)
        if role == "in":
            handles.append(module.register_forward_pre_hook(_scale_input(pieces, masks), with_kwargs=True))
            continue
        if role == "gate":
            change = _scale_output
        else:
            change = _weigh_groups if isinstance(module, nn.GroupNorm) else _weigh_mean_square
        handles.append(module.register_forward_hook(change(pieces, masks), with_kwargs=True))
    blocks = [name for name in structure.blocks if name in masks]
    for name in blocks:
        module = model.get_submodule(name)
        skip = _skip(structure.blocks[name], module, masks[name])
        handles.append(module.register_forward_hook(skip, with_kwargs=True))
    try:
        with head_redirected(model, structure, {name: masks[name] for name in blocks}):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def head_redirected(model: nn.Module, structure: Structure, masks: Masks) -> Iterator[None]:
    """Inside the block, a head that reads the conditioning of the first block reads that of the first which remains
    under these masks of blocks."""
    handles = _redirect_head(model, structure, masks) if structure.head_conditioning and masks else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def masked_group_norm(x: Tensor, mask_C: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """GroupNorm of x (B, C, ...) whose statistics weight channel c by mask_C[c].

    A channel set to zero is not removed, since it still counts in the mean and variance of its group; with weight 0 it
    does not.
    """
    exact = x if x.dtype == torch.float64 else x.float()  # sums over a group overflow half precision
    x_BGcN = exact.reshape(x.shape[0], num_groups, -1, x[0, 0].numel())
    mask_Gc1 = mask_C.to(exact).reshape(num_groups, -1, 1)
    count_G11 = (mask_Gc1.sum(1, keepdim=True) * x_BGcN.shape[-1]).clamp_min(torch.finfo(exact.dtype).tiny)
    mean = (x_BGcN * mask_Gc1).sum((2, 3), keepdim=True) / count_G11
    variance = ((x_BGcN - mean).square() * mask_Gc1).sum((2, 3), keepdim=True) / count_G11
    normalized = ((x_BGcN - mean) * torch.rsqrt(variance + eps)).reshape(x.shape)
    shape = (1, -1, *[1] * (x.ndim - 2))
    return (normalized * weight.reshape(shape) + bias.reshape(shape)).to(x.dtype)


def masked_rms_norm(x: Tensor, mask_C: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """RMSNorm of x (..., C) whose mean square weights channel c by mask_C[c]."""
    exact = x if x.dtype == torch.float64 else x.float()
    mask = mask_C.to(exact)
    mean_square = (exact.square() * mask).sum(-1, keepdim=True) / mask.sum().clamp_min(torch.finfo(exact.dtype).tiny)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return (exact * torch.rsqrt(mean_square + eps)).to(x.dtype) * weight


def _pieces_by_module(structure: Structure, masks: Masks) -> dict[tuple[str, str], Pieces]:
    found: dict[tuple[str, str], Pieces] = {}
    for dim in structure.dims.values():
        for piece in dim.slices:
            if dim.name in masks and piece.role != "out":
                found.setdefault((piece.module, piece.role), []).append((dim.name, piece.offset, dim.width_of(piece)))
    return {key: sorted(pieces, key=lambda piece: piece[1]) for key, pieces in found.items()}


def _channel_mask(pieces: Pieces, masks: Masks, channels: int, like: Tensor) -> Tensor:
    """The masks of `pieces` along one axis of `channels` entries; 1 where there is no piece."""
    parts, end = [], 0
    for name, offset, width in pieces:
        values = masks[name].to(like).repeat_interleave(width)
        parts += [like.new_ones(offset - end), values]
        end = offset + len(values)
    return torch.cat([*parts, like.new_ones(channels - end)])


def _mask_like(x: Tensor, module: nn.Module, pieces: Pieces, masks: Masks) -> Tensor:
    """The masks of `pieces` along the channels of `x`, an input or output of a convolution or of another `module`."""
    if isinstance(module, CONVOLUTIONS):  # (B, C, ...)
        return _channel_mask(pieces, masks, x.shape[1], x).view(-1, *[1] * (x.ndim - 2))
    return _channel_mask(pieces, masks, x.shape[-1], x)


def _scale_input(pieces: Pieces, masks: Masks) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        x = first_argument(args, kwargs)
        scaled = x * _mask_like(x, module, pieces, masks)
        return ((scaled, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): scaled})

    return hook


def _scale_output(pieces: Pieces, masks: Masks) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        return output * _mask_like(output, module, pieces, masks)

    return hook


def _weigh_groups(pieces: Pieces, masks: Masks) -> Callable[..., Any]:
    def hook(module: nn.GroupNorm, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = first_argument(args, kwargs)
        mask = _channel_mask(pieces, masks, x.shape[1], x)
        return masked_group_norm(x, mask, module.num_groups, module.weight, module.bias, module.eps)

    return hook


def _weigh_mean_square(pieces: Pieces, masks: Masks) -> Callable[..., Any]:
    def hook(module: nn.RMSNorm | RMSNorm, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        x = first_argument(args, kwargs)
        return masked_rms_norm(x, _channel_mask(pieces, masks, x.shape[-1], x), module.weight, module.eps)

    return hook


def _skip(block: Block, module: nn.Module, mask: Tensor) -> Callable[..., Any]:
    streams = streams_of(block, module)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        pairs = zip(pick(streams, args, kwargs), returned_tensors(block, output), strict=True)
        blended = tuple(x + mask.to(y) * (y - x) for x, y in pairs)
        return blended if block.returns else blended[0]

    return hook


def _redirect_head(model: nn.Module, structure: Structure, masks: Masks) -> list[Any]:
    """Let the head read the conditioning of the first remaining block, as it will after removal.

    While masks of blocks before it are between 0 and 1 it reads a blend, so that the output is continuous in the masks.
    """
    sources = {name: model.get_submodule(path) for name, path in structure.head_conditioning.items()}
    first_name = next(iter(sources))
    first = model.get_submodule(first_name)
    running: list[bool] = []  # the first block itself reads its own

    def blend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if running:
            return None
        read, left = torch.zeros_like(output), output.new_ones(1)
        for name, source in sources.items():
            if left == 0:
                break
            mask = masks[name].to(output) if name in masks else output.new_ones(1)
            read = read + left * mask * (output if source is module else source(*args, **kwargs))
            left = left * (1 - mask)
        return read + left * output

    return [
        first.register_forward_pre_hook(lambda *_: running.append(True)),
        first.register_forward_hook(lambda *_: running.clear()),
        sources[first_name].register_forward_hook(blend, with_kwargs=True),
    ]
