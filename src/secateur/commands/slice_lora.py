"""`secateur slice-lora`: a LoRA of a dense model for the model that was pruned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

import secateur

from ..base.console import say
from ..base.files import read_json
from ..io.locate import Component


def slice_lora(
    lora: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="LORA")],
    *,
    model: str,
    out: Path,
    component: Component | None = None,
) -> None:
    """Slice a LoRA of the dense model so that it fits the pruned one; what remains of it is the same function.

    Writes OUT/pytorch_lora_weights.safetensors, which `pipeline.load_lora_weights(OUT)` loads, and slicing.json.

    Args:
        lora: .safetensors file of diffusers, peft or kohya, or the folder that holds it.
        model: folder of the pruned model or pipeline, with its pruning.json.
        out: folder to write.
        component: which part of a pipeline, unet or transformer; the default takes the one that is there.
    """
    written = secateur.slice_lora(lora, model=model, out=out, component=component)
    about = read_json(out / "slicing.json")
    for name, unit in (("tensors", ""), ("parameters", ",")):
        counts = about[name]
        say(f"{name:11} {counts['in']:{unit}} to {counts['out']:{unit}}")
    if about["warning"] is not None:
        say(f"warning     {about['warning']}")
    say(f"lora        {written}")
