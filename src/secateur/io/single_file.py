"""Models in one safetensors file under the names of their original authors, as ComfyUI and stable-diffusion.cpp read.

Those programs build most models with the number of blocks in the file and the widths of the released one: blocks may
be removed, channels may not.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..base.errors import ModelError
from ..base.files import atomic_file, write_json
from ..base.records import record_of
from ..models.precision import cast_saved
from ..models.registry import architecture_named, families, family_of, is_known, unsupported
from .foreign import explicit, hollow, loading, quiet
from .manifest import manifest_of
from .pruned import dense_class
from .weights import DTYPES

CONFIG_KEY = "diffusers_config"  # in the metadata of files written by secateur
PREFIX = "model.diffusion_model."  # in files that also hold text encoders and VAE
HEAD_SIZE = 64  # of Stable Diffusion 3
SD3_BLOCKS, REFINERS = 24, 2  # that those programs build at least (SD3), and always (of each kind, Z-Image)
FLUX_HEAD_SIZE = 128  # divided into time, row and column by the defaults of its class
SD2_TEXT = 1024  # width of the text states of Stable Diffusion 2
STABLE_DIFFUSION: dict[str, dict[str, Any]] = {  # by the width of the U-Net's text states
    "768": {"sample_size": 64, "cross_attention_dim": 768},
    "1024": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "2048": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
LINEAR = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, dict[str, Any]] = {  # of the released models, by network class
    "UNet2DConditionModel": {**LINEAR, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "SD3Transformer2DModel": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "FluxTransformer2DModel": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "shift": 3.0,
        "use_dynamic_shifting": True,
    },
}


def write_single_file(model: nn.Module, path: Path, linear: torch.dtype | None = None) -> None:
    """Write `model` with the names of its original authors, and its diffusers config in the metadata.

    Args:
        model: of an architecture whose family has a layout, as wide as the released one.
        path: the file to write.
        linear: dtype of the weights of linear layers, by default the model's own.

    Raises:
        ModelError: its architecture is not read from such files, or it is narrower than the released one.
        SecateurError: the disk is full.
    """
    name, manifest, layout = dense_class(model).__name__, manifest_of(model), family_of(model).layout
    if layout is None:
        supported = ", ".join(family.architecture.__name__ for family in families() if family.layout is not None)
        raise ModelError(f"a {name} is not written as a single file; supported: {supported}")
    if manifest is not None and manifest.narrows:
        raise ModelError(
            f"this {name} lost channels or heads, and the programs that read single files build it at its full width: "
            "prune blocks only, or export diffusers, onnx or torch-export"
        )
    if type(model).__name__ != name:
        raise ModelError(
            f"this {name} lost blocks, and the programs that read single files would run those that are left as "
            "others: export diffusers, onnx or torch-export"
        )
    config: Mapping[str, Any] = model.config  # type: ignore[assignment]
    plain = {key: value for key, value in config.items() if not key.startswith("_")} | {"_class_name": name}
    original = layout.original(model.state_dict())
    with atomic_file(path) as temporary:
        tensors = {
            key: (
                tensor.to(linear) if linear is not None and tensor.ndim == 2 and key.endswith(".weight") else tensor
            ).contiguous()
            for key, tensor in original.items()
        }
        save_file(tensors, temporary, {"format": "pt", CONFIG_KEY: json.dumps(plain)})


def caution(model: nn.Module) -> str:
    """Why those programs do not run the file of this model, although diffusers does; empty if they do."""
    config: Mapping[str, Any] = getattr(model, "config", {})
    name = dense_class(model).__name__
    if name == "SD3Transformer2DModel":
        blocks, heads = config["num_layers"], config["num_attention_heads"] * config["attention_head_dim"] // HEAD_SIZE
        if blocks < heads:
            return (
                f"ComfyUI takes the number of blocks of a Stable Diffusion 3 from its width, {heads} here, and does "
                f"not run the {blocks} of this file; stable-diffusion.cpp builds at least {SD3_BLOCKS}"
            )
    if name == "ZImageTransformer2DModel" and config["n_refiner_layers"] < REFINERS:
        return f"ComfyUI builds {REFINERS} refiners of each kind for Z-Image, and does not run a file with fewer"
    return ""


def load_single_file(path: Path, torch_dtype: torch.dtype | None = None) -> nn.Module:
    """Load the network in a safetensors file of the original authors, by diffusers' own conversion, in eval mode.

    The config is that of the released model with these tensors; nothing is downloaded.

    Args:
        path: the file; its other content, such as text encoders, is not read.
        torch_dtype: dtype of the weights; by default their common one, else float32.

    Raises:
        ModelError: its architecture is not recognized, or it is damaged.
    """
    with loading(path):
        shapes, dtypes, config = _contents(path)
        name = str(config["_class_name"])
        architecture: Any = architecture_named(name)
        # With its defaults, which diffusers' conversion of Stable Diffusion reads.
        whole_config = explicit(hollow(architecture, config, 2 * len(shapes) + 200).config)  # type: ignore[arg-type]
        whole = {DTYPES[each] for each in dtypes if each in DTYPES}  # float8 is read in the dtype of the other tensors
        chosen = torch_dtype or (whole.pop() if len(whole) == 1 else torch.float32)
        with tempfile.TemporaryDirectory() as folder, quiet():
            whole_config["_class_name"] = name
            write_json(Path(folder, "config.json"), whole_config)
            model = architecture.from_single_file(
                str(path), config=folder, local_files_only=True, torch_dtype=chosen, disable_mmap=False
            )
        held = sum(math.prod(shape) for shape in shapes.values())
        used = sum(tensor.numel() for tensor in model.state_dict().values() if not tensor.is_meta)
        needed = sum(tensor.numel() for tensor in model.state_dict().values())
        if not held == used == needed:
            raise ValueError(
                f"it holds {held:,} numbers, of which a {name} of that size uses {used:,} and needs {needed:,}: it is "
                "scaled, quantized or of another model"
            )
        cast_saved(model, chosen)
        return model.eval()


def config_in(path: Path) -> dict[str, Any]:
    """The config of the network in a file, of which only the header is read.

    Raises:
        ModelError: as `load_single_file`.
    """
    with loading(path):
        return _contents(path)[2]


def scheduler_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The scheduler config of the released models of the class of a network with this config.

    Raises:
        ModelError: there is none, or several; give `--process`, or a pipeline.
    """
    name = str(config["_class_name"])
    if name not in SCHEDULERS:
        raise ModelError(f"a single file of a {name} does not say how it is sampled; say --process ddpm or flow")
    if config.get("cross_attention_dim") == SD2_TEXT:
        raise ModelError(
            "a single file of Stable Diffusion 2 does not say whether it predicts noise (512 pixels) or velocity "
            "(768); use the folder of its pipeline"
        )
    return SCHEDULERS[name]


def _contents(path: Path) -> tuple[dict[str, tuple[int, ...]], set[str], dict[str, Any]]:
    """Shapes and dtypes of the network's tensors, and the config of the model that has them."""
    if path.suffix != ".safetensors":
        raise ModelError(f"{path} is no .safetensors file; other files may hold a pickle, which is never opened")
    shapes, dtypes, metadata = _header(path)
    config = _config_of(shapes, metadata)
    name = str(config["_class_name"])
    if not is_known(name):
        raise ModelError(f"{path} cannot be used: {unsupported(name)}")
    return shapes, dtypes, config


def _header(path: Path) -> tuple[dict[str, tuple[int, ...]], set[str], dict[str, str]]:
    """Shapes of the network's tensors by the authors' names, the dtypes, and the metadata."""
    with safe_open(path, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        metadata = dict(opened.metadata() or {})
    if any(name.startswith(PREFIX) for name in slices):
        slices = {name.removeprefix(PREFIX): each for name, each in slices.items() if name.startswith(PREFIX)}
    shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
    return shapes, {each.get_dtype() for each in slices.values()}, metadata


def _config_of(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The diffusers config of the model that has these tensors.

    Raises:
        ModelError: they belong to no known model.
    """
    if CONFIG_KEY in metadata:
        return record_of(dict[str, Any], json.loads(metadata[CONFIG_KEY]), "its metadata")
    if "double_blocks.0.img_attn.qkv.weight" in shapes and "vector_in.in_layer.weight" in shapes:
        return _flux_config(shapes)
    if "joint_blocks.0.x_block.attn.qkv.weight" in shapes:
        return _sd3_config(shapes)
    text = shapes.get("input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1]
    if str(text) in STABLE_DIFFUSION and shapes["input_blocks.0.0.weight"][1] == 4:
        return {"_class_name": "UNet2DConditionModel", **STABLE_DIFFUSION[str(text)]}
    raise ModelError(
        "its tensors are of no model that is known by a single file: Stable Diffusion 1, 2, XL and 3, Flux, or one "
        "that secateur wrote"
    )


def _flux_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    (head_size,) = shapes["double_blocks.0.img_attn.norm.query_norm.scale"]
    if head_size != FLUX_HEAD_SIZE:
        raise ModelError(f"its heads have {head_size} channels; those of the released Flux have {FLUX_HEAD_SIZE}")
    return {
        "_class_name": "FluxTransformer2DModel",
        "num_layers": _count(shapes, r"double_blocks\.(\d+)\."),
        "num_single_layers": _count(shapes, r"single_blocks\.(\d+)\."),
        "num_attention_heads": shapes["img_in.weight"][0] // head_size,
        "attention_head_dim": head_size,
        "in_channels": shapes["img_in.weight"][1],
        "joint_attention_dim": shapes["txt_in.weight"][1],
        "pooled_projection_dim": shapes["vector_in.in_layer.weight"][1],
        "guidance_embeds": "guidance_in.in_layer.weight" in shapes,
    }


def _sd3_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    hidden, channels, patch, _ = shapes["x_embedder.proj.weight"]
    dual = {int(found[1]) for found in map(re.compile(r"joint_blocks\.(\d+)\.x_block\.attn2").match, shapes) if found}
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2,
        "num_layers": _count(shapes, r"joint_blocks\.(\d+)\."),
        "num_attention_heads": hidden // HEAD_SIZE,
        "attention_head_dim": HEAD_SIZE,
        "joint_attention_dim": shapes["context_embedder.weight"][1],
        "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": sorted(dual),
        "qk_norm": "rms_norm" if "joint_blocks.0.x_block.attn.ln_q.weight" in shapes else None,
    }


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    return len({found[1] for found in map(re.compile(pattern).match, shapes) if found})
