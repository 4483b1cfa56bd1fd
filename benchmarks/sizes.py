"""Structure and plan of full-size architectures without their weights; with `--prune`, one of them is pruned and saved.

    python benchmarks/sizes.py
    python benchmarks/sizes.py --prune sdxl --dtype bfloat16

The first command builds every model on the meta device, each in a process of its own, inspects it twice, and plans a
compression to half of its MACs by the default recipe; a structure that nobody declared is discovered and proven the
first time, on a small copy. The second fills one model with random weights, makes that cut, and saves the result to a
temporary folder. Configurations are those of
the published checkpoints.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    ChromaTransformer2DModel,
    DiTTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HunyuanVideoTransformer3DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from torch import nn

import secateur
from bench import RESULTS, read_json, timed, write_json, write_text
from speedup import cifar10_unet

TARGET = "macs=50%"
NOISE = (UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, PixArtTransformer2DModel)  # what they predict


def sd15() -> UNet2DConditionModel:
    """stable-diffusion-v1-5/stable-diffusion-v1-5."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


def sdxl() -> UNet2DConditionModel:
    """stabilityai/stable-diffusion-xl-base-1.0."""
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def dit_xl() -> DiTTransformer2DModel:
    """facebook/DiT-XL-2-256."""
    return DiTTransformer2DModel(sample_size=32, out_channels=8)


def pixart_xl() -> PixArtTransformer2DModel:
    """PixArt-alpha/PixArt-XL-2-1024-MS."""
    return PixArtTransformer2DModel(caption_channels=4096)


def sd3_medium() -> SD3Transformer2DModel:
    """stabilityai/stable-diffusion-3-medium-diffusers."""
    return SD3Transformer2DModel(
        num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192
    )


def flux_dev() -> FluxTransformer2DModel:
    """black-forest-labs/FLUX.1-dev."""
    return FluxTransformer2DModel(guidance_embeds=True)


def sana_1600m() -> SanaTransformer2DModel:
    """Efficient-Large-Model/Sana_1600M_1024px_diffusers."""
    return SanaTransformer2DModel()


def chroma() -> ChromaTransformer2DModel:
    """lodestones/Chroma1-HD."""
    return ChromaTransformer2DModel()


def flux2_klein() -> Flux2Transformer2DModel:
    """black-forest-labs/FLUX.2-klein-4B."""
    return Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )


def flux2_dev() -> Flux2Transformer2DModel:
    """black-forest-labs/FLUX.2-dev."""
    return Flux2Transformer2DModel()


def qwen_image() -> QwenImageTransformer2DModel:
    """Qwen/Qwen-Image."""
    return QwenImageTransformer2DModel()


def z_image() -> ZImageTransformer2DModel:
    """Tongyi-MAI/Z-Image-Turbo."""
    return ZImageTransformer2DModel()


def lumina_2() -> Lumina2Transformer2DModel:
    """Alpha-VLLM/Lumina-Image-2.0."""
    return Lumina2Transformer2DModel()


def wan_small() -> WanTransformer3DModel:
    """Wan-AI/Wan2.1-T2V-1.3B-Diffusers."""
    return WanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)


def wan_14b() -> WanTransformer3DModel:
    """Wan-AI/Wan2.1-T2V-14B-Diffusers, and each of the two of Wan2.2-T2V-A14B-Diffusers."""
    return WanTransformer3DModel()


def hunyuan_video() -> HunyuanVideoTransformer3DModel:
    """hunyuanvideo-community/HunyuanVideo."""
    return HunyuanVideoTransformer3DModel()


def sd_vae() -> AutoencoderKL:
    """stabilityai/sd-vae-ft-mse."""
    return AutoencoderKL(
        sample_size=256,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )


MODELS: dict[str, Callable[[], Any]] = {
    "ddpm-cifar10": cifar10_unet,
    "sd-1.5": sd15,
    "sdxl": sdxl,
    "dit-xl-2": dit_xl,
    "pixart-xl-2": pixart_xl,
    "sd3-medium": sd3_medium,
    "flux-dev": flux_dev,
    "sana-1.6b": sana_1600m,
    "chroma-hd": chroma,
    "flux2-klein-4b": flux2_klein,
    "flux2-dev": flux2_dev,
    "qwen-image": qwen_image,
    "z-image": z_image,
    "lumina-2": lumina_2,
    "wan-1.3b": wan_small,
    "wan-14b": wan_14b,
    "hunyuan-video": hunyuan_video,
    "sd-vae": sd_vae,
}


def plan(name: str, target: str) -> dict[str, Any]:
    """Describe a model without weights, count its costs and plan a cut; seconds of each."""
    with init_empty_weights(include_buffers=True):
        model = MODELS[name]()
    with tempfile.TemporaryDirectory() as cache, patch.dict(os.environ, SECATEUR_CACHE=cache):
        _, proving = timed(lambda: secateur.inspect(model))
        structure, inspecting = timed(lambda: secateur.inspect(model).structure)
        process = None if isinstance(model, AutoencoderKL) else "ddpm" if isinstance(model, NOISE) else "flow"
        planned, planning = timed(lambda: secateur.plan(model, target=target, process=process))
    cut = planned.cut
    assert cut is not None
    return {
        "model": name,
        "class": type(model).__name__,
        "parameters": cut.before.parameters,
        "macs": cut.before.macs,
        "attention_macs": cut.before.attention_macs,
        "dims": len(structure.dims),
        "links": len(structure.links),
        "blocks": len(structure.blocks),
        "reached": cut.after.macs / cut.before.macs,
        "parameters_left": cut.after.parameters / cut.before.parameters,
        "first_seconds": round(proving, 2),
        "inspect_seconds": round(inspecting, 2),
        "plan_seconds": round(planning, 2),
        "peak_gib": round(resident(), 2),
    }


def prune(name: str, target: str, dtype: torch.dtype) -> dict[str, Any]:
    """Cut and save a model with random weights of `dtype`; seconds of each and peak resident memory."""
    with init_empty_weights(include_buffers=False):
        model = MODELS[name]()
    _, filling = timed(lambda: _fill(model, dtype))
    options: dict[str, Any] = {"criterion": "random", "inplace": True}
    process = None if isinstance(model, AutoencoderKL) else "ddpm"
    pruned, cutting = timed(lambda: secateur.prune(model, target=target, process=process, **options))
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        _, saving = timed(lambda: secateur.save_pretrained(pruned, folder))
        size = sum(os.path.getsize(file) for file in Path(folder).iterdir())
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "fill_seconds": round(filling, 1),
        "prune_seconds": round(cutting, 1),
        "save_seconds": round(saving, 1),
        "saved_gib": round(size / 2**30, 2),
        "peak_gib": round(resident(), 2),
    }


def resident() -> float:
    """GiB of resident memory, the largest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30


def _fill(model: nn.Module, dtype: torch.dtype) -> None:
    """Random values for every parameter that is on the meta device, one at a time."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            values = torch.empty(parameter.shape, dtype=dtype).normal_(std=0.02, generator=generator)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(dtype) if buffer.is_floating_point() else buffer)


def format_count(value: float) -> str:
    """A count with its unit: 3.4G, 20M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def write(results: dict[str, Any]) -> None:
    """`sizes.json` and the same as tables."""
    write_json(RESULTS / "sizes.json", results)
    lines = [
        f"Planned to {results['target']} without weights, {results['threads']} thread(s), torch {results['torch']}.",
        "",
        "| model | class | parameters | MACs | attention products | widths | blocks | MACs kept | first (s) "
        "| again (s) | plan (s) | peak memory (GiB) |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['model']} | {row['class']} | {format_count(row['parameters'])} | {format_count(row['macs'])} | "
        f"{format_count(row['attention_macs'])} | {row['dims']} | {row['blocks']} | {100 * row['reached']:.1f} % | "
        f"{row['first_seconds']} | {row['inspect_seconds']} | {row['plan_seconds']} | {row['peak_gib']} |"
        for row in results["plans"]
    ]
    if results["pruned"]:
        header = list(results["pruned"][0])
        lines += ["", "| " + " | ".join(header) + " |", "|---|---|" + "--:|" * (len(header) - 2)]
        lines += ["| " + " | ".join(str(row[key]) for key in header) + " |" for row in results["pruned"]]
    write_text(RESULTS / "sizes.md", "\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--target", default=TARGET)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--prune", choices=list(MODELS), help="cut and save this one, with random weights")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    path = RESULTS / "sizes.json"
    results = read_json(path) if path.exists() else {"plans": [], "pruned": []}
    results |= {"target": arguments.target, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if arguments.prune:
        row = prune(arguments.prune, arguments.target, getattr(torch, arguments.dtype))
        key = (row["model"], row["dtype"])
        results["pruned"] = [old for old in results["pruned"] if (old["model"], old["dtype"]) != key] + [row]
        print(row, flush=True)
        write(results)
    else:
        for name in arguments.models:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:  # the peak of memory is its own
                row = alone.submit(plan, name, arguments.target).result()
            results["plans"] = [old for old in results["plans"] if old["model"] != name and "first_seconds" in old] + [
                row
            ]
            results["plans"].sort(key=lambda each: list(MODELS).index(each["model"]))
            print(row, flush=True)
            write(results)


if __name__ == "__main__":
    main()
