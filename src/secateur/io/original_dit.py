"""Original DiT and SiT checkpoints (Peebles & Xie 2023; Ma et al. 2024) as diffusers pipeline folders.

Both have the same tensors; they differ in time, target and sampler, so the kind must be given.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from diffusers import DiTTransformer2DModel, __version__
from diffusers.models.embeddings import PatchEmbed
from safetensors.torch import load_file
from torch import Tensor

from ..base.errors import ModelError, SecateurError, first_line, require
from ..base.files import atomic_folder, read_json, write_json
from ..base.units import number_of
from ..process.flow import EVEN_LEVELS
from .checkpoint import SCHEDULER, save_pretrained
from .manifest import FREQUENCIES_KEY

Kind = Literal["dit", "sit"]

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # hidden size to heads: S, B, L and XL of both papers
TIME_FEATURES = 256  # cosines, then sines, of as many frequencies
_NAMED_KIND = re.compile("DiT|SiT|(?<![a-z])(?:dit|sit)(?![a-z])")
_BLOCK = re.compile(r"blocks\.(\d+)\.")

SCHEDULERS: dict[Kind, dict[str, Any]] = {
    "dit": {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 2e-2,
        "prediction_type": "epsilon",
        "clip_sample": False,
    },
    "sit": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "_secateur_flow_convention": "sit",
        EVEN_LEVELS: True,  # as in SiT's own Euler sampler: n calls, each over 1 / n of the time
    },
}


def kind_named(checkpoint: str | Path) -> Kind:
    """The kind by a file name such as DiT-XL-2-256x256.pt.

    Raises:
        SecateurError: it says neither, or both.
    """
    found = {name.lower() for name in _NAMED_KIND.findall(Path(checkpoint).name)}
    if found == {"dit"}:
        return "dit"
    if found == {"sit"}:
        return "sit"
    raise SecateurError(f"{checkpoint}: the name does not say whether this is a DiT or a SiT; give --kind dit or sit")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a torch checkpoint; for a training checkpoint its EMA, or else its
    model.

    Raises:
        ModelError: the file is missing, is not a checkpoint, or holds objects that would have to be unpickled.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} is not a file; give a .pt or .safetensors checkpoint")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # The training scripts keep their options, an argparse.Namespace, beside the weights: attributes, no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch may raise anything on a damaged file
        if refused := re.search(r"GLOBAL (\w[\w.]*\w)", str(error)):
            raise ModelError(f"{path} holds a {refused[1]}; only tensors are read, nothing is unpickled") from error
        raise ModelError(f"{path} is no checkpoint that can be read: {first_line(error)}") from error
    if isinstance(state, Mapping):
        state = next((state[key] for key in ("ema", "model") if key in state), state)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ModelError(f"{path} is no checkpoint: it holds no dictionary of tensors")
    return dict(state)


def convert_state_dict(
    state: Mapping[str, Tensor], kind: Kind, num_heads: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of the `DiTTransformer2DModel` equivalent to the original model.

    A DiT's config has `FREQUENCIES_KEY`, with which secateur loads it with the original time frequencies. A SiT's
    weights are fitted to diffusers' frequencies, and the output channels that its forward pass drops are removed.

    Args:
        state: tensors by their original names.
        kind: dit or sit.
        num_heads: attention heads, which no shape shows; by default, those of the published sizes.

    Raises:
        ModelError: tensors are missing, unexpected or misshapen, or belong to another position embedding.
        SecateurError: the number of heads is unknown, or does not divide the hidden size.
    """
    hidden, channels, patch, _ = _shape(state, "x_embedder.proj.weight", 4)
    _, tokens, _ = _shape(state, "pos_embed", 3)
    classes = _shape(state, "y_embedder.embedding_table.weight", 2)[0] - 1  # the last row stands for no class
    outputs, once = _shape(state, "final_layer.linear.weight", 2)[0], patch * patch * channels
    learns_variance = outputs == 2 * once
    depth = len({found[1] for found in map(_BLOCK.match, state) if found})
    _check_names_and_shapes(
        state, _layout(hidden, channels, patch, tokens, classes, depth, 2 * once if learns_variance else once)
    )
    heads = HEADS.get(hidden) if num_heads is None else num_heads
    if heads is None:
        raise SecateurError(f"the number of heads of hidden size {hidden} is not known; give --num-heads")
    fits = heads >= 1 and hidden % heads == 0
    require(fits, f"{heads} heads do not divide the hidden size {hidden}; give another --num-heads")
    size = math.isqrt(tokens) * patch
    _check_positions(state["pos_embed"], PatchEmbed(size, size, patch, channels, hidden).pos_embed)

    config = {
        "num_attention_heads": heads,
        "attention_head_dim": hidden // heads,
        "in_channels": channels,
        "out_channels": 2 * channels if learns_variance and kind == "dit" else channels,
        "num_layers": depth,
        "sample_size": size,
        "patch_size": patch,
        "num_embeds_ada_norm": classes,
        "activation_fn": "gelu-approximate",
        "norm_eps": 1e-6,
    }
    time_weight, head = state["t_embedder.mlp.0.weight"], {}
    for part in ("weight", "bias"):
        rows = state[f"final_layer.linear.{part}"].unflatten(0, (patch * patch, -1))
        head[f"proj_out_2.{part}"] = rows[:, : config["out_channels"]].flatten(0, 1)
    if kind == "dit":
        config[FREQUENCIES_KEY] = True
    else:
        time_weight = _fit_frequencies(time_weight)
    embeddings = {  # of time and class; every block of diffusers has its own copy
        "class_embedder.embedding_table.weight": state["y_embedder.embedding_table.weight"],
        "timestep_embedder.linear_1.weight": time_weight,
        "timestep_embedder.linear_1.bias": state["t_embedder.mlp.0.bias"],
        "timestep_embedder.linear_2.weight": state["t_embedder.mlp.2.weight"],
        "timestep_embedder.linear_2.bias": state["t_embedder.mlp.2.bias"],
    }
    converted = head
    for part in ("weight", "bias"):
        converted[f"pos_embed.proj.{part}"] = state[f"x_embedder.proj.{part}"]
        converted[f"proj_out_1.{part}"] = state[f"final_layer.adaLN_modulation.1.{part}"]  # shift, scale in both
    for i in range(depth):
        old, new = f"blocks.{i}", f"transformer_blocks.{i}"
        converted |= {f"{new}.norm1.emb.{name}": value for name, value in embeddings.items()}
        for part in ("weight", "bias"):
            qkv = state[f"{old}.attn.qkv.{part}"].chunk(3)
            converted |= {f"{new}.attn1.to_{x}.{part}": value for x, value in zip("qkv", qkv, strict=True)}
            converted[f"{new}.attn1.to_out.0.{part}"] = state[f"{old}.attn.proj.{part}"]
            converted[f"{new}.norm1.linear.{part}"] = state[f"{old}.adaLN_modulation.1.{part}"]
            converted[f"{new}.ff.net.0.proj.{part}"] = state[f"{old}.mlp.fc1.{part}"]
            converted[f"{new}.ff.net.2.{part}"] = state[f"{old}.mlp.fc2.{part}"]
    return config, converted


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    kind: Kind | None = None,
    num_heads: int | None = None,
    vae: str | Path | None = None,
) -> dict[str, Any]:
    """Write `checkpoint` as the pipeline folder `out` and return the transformer's config.

    The folder holds transformer, scheduler and, where given, a copy of the VAE.

    Raises:
        ModelError: as `read_checkpoint` and `convert_state_dict`; a VAE that does not fit.
        SecateurError: as `kind_named`; `out` is not empty; the disk is full.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SecateurError(f"{out} exists and is not empty; choose another OUT")
    state = read_checkpoint(checkpoint)
    kind = kind or kind_named(checkpoint)
    try:
        config, weights = convert_state_dict(state, kind, num_heads)
    except ModelError as error:
        raise ModelError(f"{checkpoint}: {error}") from error
    scheduler = dict(SCHEDULERS[kind])
    if config["out_channels"] == 2 * config["in_channels"]:
        scheduler["variance_type"] = "learned_range"
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": __version__,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
    }
    if vae is not None:
        _check_vae(Path(vae), config["in_channels"])
        index["vae"] = ["diffusers", "AutoencoderKL"]
    with init_empty_weights(include_buffers=False):
        model = DiTTransformer2DModel.from_config(config)
    # Clones, since safetensors does not store tensors that share memory.
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, strict=True, assign=True)
    with atomic_folder(out) as temporary:
        save_pretrained(model, temporary / "transformer")
        write_json(temporary / "scheduler" / SCHEDULER, scheduler)
        if vae is not None:
            shutil.copytree(vae, temporary / "vae", ignore=_all_but_json_and_safetensors)
        write_json(temporary / "model_index.json", index)
    return config


def _shape(state: Mapping[str, Tensor], name: str, ndim: int) -> tuple[int, ...]:
    if name not in state:
        raise ModelError(f"tensors are missing, the first {name}: this is no DiT or SiT in its original layout")
    if state[name].ndim != ndim:
        raise ModelError(f"{name} has shape {tuple(state[name].shape)} where {ndim} dimensions are expected")
    return tuple(state[name].shape)


def _layout(
    hidden: int, channels: int, patch: int, tokens: int, classes: int, depth: int, outputs: int
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the original model."""
    linears = {
        "t_embedder.mlp.0": (hidden, TIME_FEATURES),
        "t_embedder.mlp.2": (hidden, hidden),
        "final_layer.linear": (outputs, hidden),
        "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
    }
    for i in range(depth):
        linears |= {
            f"blocks.{i}.attn.qkv": (3 * hidden, hidden),
            f"blocks.{i}.attn.proj": (hidden, hidden),
            f"blocks.{i}.mlp.fc1": (4 * hidden, hidden),
            f"blocks.{i}.mlp.fc2": (hidden, 4 * hidden),
            f"blocks.{i}.adaLN_modulation.1": (6 * hidden, hidden),
        }
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linears.items()}
    biases = {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    return (weights | biases) | {
        "x_embedder.proj.weight": (hidden, channels, patch, patch),
        "x_embedder.proj.bias": (hidden,),
        "y_embedder.embedding_table.weight": (classes + 1, hidden),
        "pos_embed": (1, math.isqrt(tokens) ** 2, hidden),
    }


def _check_names_and_shapes(state: Mapping[str, Tensor], layout: Mapping[str, tuple[int, ...]]) -> None:
    missing, unexpected = layout.keys() - state.keys(), state.keys() - layout.keys()
    if missing:
        raise ModelError(f"it lacks {number_of(len(missing), 'tensor')}, the first {min(missing)}")
    if unexpected:
        raise ModelError(f"it has {number_of(len(unexpected), 'tensor')} of no DiT or SiT, the first {min(unexpected)}")
    for name, shape in layout.items():
        if state[name].shape != shape:
            raise ModelError(f"{name} has shape {tuple(state[name].shape)} where {shape} is expected")
        if not state[name].is_floating_point():
            raise ModelError(
                f"{name} holds {str(state[name].dtype).removeprefix('torch.')}, not floating-point numbers"
            )


def _check_positions(theirs: Tensor, ours: Tensor) -> None:
    """Refuse position embeddings other than the 2-D sine-cosine ones that diffusers computes."""
    difference = (theirs.float() - ours).abs().max().item()
    if not difference <= max(1e-5, torch.finfo(theirs.dtype).eps):
        raise ModelError(f"pos_embed is not the sine-cosine embedding that diffusers computes: off by {difference:.2g}")


def _fit_frequencies(weight_DF: Tensor) -> Tensor:
    """The weights that give the same function of time in [0, 1] on diffusers' frequencies.

    The original's are 10000^(-k/128), diffusers' 10000^(-k/127). On [0, 1] their sines and cosines are so smooth that
    least squares expresses either set in the other to float32 precision.
    """
    t_T = torch.linspace(0, 1, 512, dtype=torch.float64)
    theirs_TF, ours_TF = _time_features(t_T, 0), _time_features(t_T, 1)
    map_FF = torch.linalg.lstsq(ours_TF, theirs_TF, rcond=1e-10, driver="gelsd").solution
    return (weight_DF.double() @ map_FF.T).to(weight_DF.dtype)


def _time_features(t_T: Tensor, shift: int) -> Tensor:
    half = TIME_FEATURES // 2
    frequencies = 10000 ** (-torch.arange(half, dtype=t_T.dtype) / (half - shift))
    angles = t_T[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _check_vae(folder: Path, channels: int) -> None:
    """Refuse a folder without an `AutoencoderKL` in safetensors, or one with other latents than the model's."""
    config = read_json(folder / "config.json")
    if config.get("_class_name") != "AutoencoderKL" or not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no AutoencoderKL in safetensors; give the folder of the VAE itself")
    if (latent := config.get("latent_channels")) != channels:
        raise ModelError(f"the VAE in {folder} has {latent} latent channels; the model takes {channels}")


def _all_but_json_and_safetensors(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if Path(name).suffix not in (".json", ".safetensors")}
