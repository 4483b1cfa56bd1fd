"""`secateur slice-lora`: cut a LoRA of a dense model to fit the model that was pruned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import secateur

from ..base.console import say
from ..base.files import read_json
from ..results.exported import SlicedLora
from ..runs.arguments import WeightsArguments
from .options import NamedWeights


def slice_lora(
    lora: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="LORA")],
    *,
    pruned: NamedWeights,
    out: Path,
) -> None:
    """Slice a LoRA of the dense model so that it fits the pruned one; on what was kept, its effect is the same.

    Writes OUT/pytorch_lora_weights.safetensors, which `pipeline.load_lora_weights(OUT)` loads, and slicing.json.

    Args:
        lora: .safetensors file of diffusers, peft or kohya, or the folder that holds it.
        pruned: the pruned model or pipeline, with its pruning.json.
        out: folder to write.
    """
    arguments: WeightsArguments = {**pruned.arguments, "device": "cpu"}
    written = secateur.slice_lora(lora, model=pruned.model, out=out, **arguments)
    about: SlicedLora = read_json(out / "slicing.json")
    for name, counts in (("tensors", about["tensors"]), ("parameters", about["parameters"])):
        say(f"{name:11} {counts['in']:,} to {counts['out']:,}")
    if about["warning"] is not None:
        say(f"warning     {about['warning']}")
    say(f"lora        {written}")
