"""LoRA files: safetensors of diffusers, peft and kohya, and scales from peft configs."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..base.errors import ModelError, first_line
from ..base.files import read_json

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps peft's configs


def read_lora(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a LoRA, with every scale that is not stored beside them as `alpha` multiplied into `up`.

    Args:
        path: a safetensors file, or a folder with the one that diffusers or peft writes.

    Raises:
        ModelError: there is none, it is damaged, or it is a DoRA, whose norms depend on removed weights.
    """
    file = lora_file(Path(path))
    try:
        with safe_open(file, "pt") as opened:
            lora = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
        described = json.loads(metadata.get(METADATA_KEY, "{}"))
        if file.name == PEFT_WEIGHTS and (file.parent / PEFT_CONFIG).is_file():
            config = read_json(file.parent / PEFT_CONFIG)
            described = {f"base_model.{key}": value for key, value in config.items()}
        return _scaled(lora, described)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError, re.error) as error:
        raise ModelError(f"{file} cannot be read: {first_line(error)}") from error


def peft_metadata(lora: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata for a file of `lora` that gives the rank of every layer, with an alpha of the same size, so nothing is
    scaled.

    Without it, readers that find no scale beside a layer use the first layer's rank as every alpha. kohya's layers have
    an alpha each, and get no metadata.
    """
    ranks: dict[str, dict[str, int]] = {}
    for key, down in lora.items():
        component, _, rest = key.partition(".")
        layer, found, _ = rest.partition(".lora_A.")
        if found:
            ranks.setdefault(component, {})[layer] = len(down)
    described: dict[str, Any] = {}
    for component, of_layers in ranks.items():
        common = Counter(of_layers.values()).most_common(1)[0][0]
        others = {layer: rank for layer, rank in of_layers.items() if rank != common}
        config = {"r": common, "lora_alpha": common, "rank_pattern": others, "alpha_pattern": others}
        config["target_modules"] = sorted(of_layers)
        described |= {f"{component}.{name}": value for name, value in config.items()}
    return {"format": "pt"} | ({METADATA_KEY: json.dumps(described, sort_keys=True)} if described else {})


def lora_file(path: Path) -> Path:
    """The file at `path`, or the one that the folder `path` holds.

    Raises:
        ModelError: there is none, or several; or it may hold a pickle.
    """
    if path.is_dir():
        found = [path / name for name in (LORA_WEIGHTS, PEFT_WEIGHTS) if (path / name).is_file()]
        found = found or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise ModelError(f"{path} holds {len(found)} LoRA files; name one .safetensors file")
        return found[0]
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    if path.suffix != ".safetensors":
        raise ModelError(f"{path} is no .safetensors file; other files may hold a pickle, which is never opened")
    return path


def _scaled(lora: Mapping[str, Tensor], described: Mapping[str, Any]) -> dict[str, Tensor]:
    """Multiply alpha / rank (peft; with rslora alpha / sqrt(rank)) of the peft configs in `described` into `up`."""
    ranks = {key.partition(".lora_A.")[0]: len(down) for key, down in lora.items() if ".lora_A." in key}
    configs: dict[str, dict[str, Any]] = {}
    for key, value in described.items():
        component, _, entry = key.partition(".")
        configs.setdefault(component, {})[entry] = value
    scaled = dict(lora)
    for key in lora:
        layer, found, _ = key.partition(".lora_B.")
        config = configs.get(key.partition(".")[0])
        if found and config:
            rank, alpha = ranks[layer], _alpha(config, layer)
            scaled[key] = lora[key] * (alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return scaled


def _alpha(config: Mapping[str, Any], layer: str) -> float:
    """peft's alpha: that of the first pattern that matches the end of the layer's name, else the common one."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    matching = (alpha for pattern, alpha in patterns.items() if re.match(rf"(.*\.)?({pattern})$", layer))
    return next(matching, config["lora_alpha"])
