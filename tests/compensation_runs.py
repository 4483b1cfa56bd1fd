"""Compensations of small models of every architecture, after cuts of their widths and blocks."""

import copy
from dataclasses import replace

import torch
from torch import nn

import models
from models import half, randomize, sample_for
from recent_models import lumina_2, qwen_image, z_image
from secateur.compensation import CompensationConfig, compensate
from secateur.data import Batch
from secateur.models.families.autoencoder_kl import AutoencoderKLDecoder
from secateur.models.registry import describe
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.process.reconstruction import reconstruction_by
from secateur.structure import Cut, remove
from uvit import UViT

CONFIG = CompensationConfig(num_tuples=24, batch_size=8)
BUILDERS = {
    "unet": lambda: models.unet(resnet_time_scale_shift="scale_shift", num_class_embeds=3),
    "unet-condition": models.unet_condition,
    "dit": models.dit,
    "pixart": models.pixart,
    "sd3": lambda: models.sd3(dual_attention_layers=(0,), qk_norm="rms_norm"),
    "flux": models.flux,
    "sana": models.sana,
    "z-image": lambda: randomize(z_image()),
    "lumina2": lambda: randomize(lumina_2()),
    "qwen-image": lambda: randomize(qwen_image()),
    "uvit": lambda: models.uvit(num_heads=4, skip=True),
    "decoder": lambda: AutoencoderKLDecoder(models.autoencoder()),
}


def process_of(model: nn.Module):
    if isinstance(model, AutoencoderKLDecoder):
        return reconstruction_by(model.autoencoder)
    return DiffusionProcess() if hasattr(model, "mid_block") else FlowProcess()


def batch_of(model: nn.Module, count: int = 12) -> Batch:
    if isinstance(model, AutoencoderKLDecoder):
        return Batch(torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-1, 1))
    if isinstance(model, UViT):
        generator = torch.Generator().manual_seed(0)
        return Batch(torch.randn(count, 3, 8, 8, generator=generator), {"class_labels": torch.arange(count) % 3})
    sample, conditions = sample_for(model, count)
    lengths = 16 - torch.arange(count) % 13  # so that the longest text of a micro-batch differs
    mask = (torch.arange(16) < lengths[:, None]).long()
    return Batch(sample, {name: mask if "mask" in name else value for name, value in conditions.items()})


def cut_of(model: nn.Module, kind: str) -> Cut:
    """Half of every dim, a block, or both."""
    blocks = describe(model).blocks
    removed = (list(blocks)[len(blocks) // 2],) if kind != "width" and blocks else ()
    return Cut(half(model).kept if kind != "depth" else {}, removed)


def compensated(
    name: str, kind: str, config: CompensationConfig = CONFIG, dtype: torch.dtype = torch.float32, **options
):
    dense = BUILDERS[name]().to(dtype)
    cut = cut_of(dense, kind)
    pruned = remove(copy.deepcopy(dense), describe(dense), cut)
    before = copy.deepcopy(pruned)
    batch = batch_of(dense)
    batch = replace(batch, sample=batch.sample.to(dtype))
    result = compensate(pruned, dense, process_of(dense), batch, config, [cut], **options)
    return dense, before, pruned, result
