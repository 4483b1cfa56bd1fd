"""`secateur slice-lora`: a LoRA of a dense model for the model that was pruned from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from safetensors.torch import save_file

from ..base.console import say
from ..base.files import atomic_folder, write_json
from ..base.rules import checked
from ..io.locate import Component
from ..io.lora import slice_lora as sliced
from ..io.lora_files import LORA_WEIGHTS, peft_metadata, read_lora
from ..io.manifest import library_versions, manifest_of
from ..runs.folder import refuse_run
from ..runs.subject import open_weights


@checked
def slice_lora(
    lora: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="LORA")],
    *,
    model: str,
    out: Path,
    component: Component | None = None,
) -> Path:
    """Slice a LoRA of the dense model so that it fits the pruned one; what remains of it is the same function.

    Writes OUT/pytorch_lora_weights.safetensors, which `pipeline.load_lora_weights(OUT)` loads, and slicing.json.

    Args:
        lora: .safetensors file of diffusers, peft or kohya, or the folder that holds it.
        model: folder of the pruned model or pipeline, with its pruning.json.
        out: folder to write.
        component: which part of a pipeline, unet or transformer; the default takes the one that is there.

    Returns:
        The file of the sliced LoRA.
    """
    refuse_run(out)
    before = read_lora(lora)
    pruned = open_weights(model, "cpu", component)
    after = sliced(before, pruned)
    manifest = manifest_of(pruned)
    assert manifest is not None
    sizes = {name: sum(tensor.numel() for tensor in each.values()) for name, each in (("in", before), ("out", after))}
    with atomic_folder(out) as temporary:
        save_file(after, temporary / LORA_WEIGHTS, peft_metadata(after))
        about = {
            "lora": str(lora),
            "model": model,
            "manifest_sha256": manifest.digest,
            "tensors": {"in": len(before), "out": len(after)},
            "parameters": sizes,
            "versions": library_versions(),
        }
        write_json(temporary / "slicing.json", about)
    say(f"tensors     {len(before)} to {len(after)}")
    say(f"parameters  {sizes['in']:,} to {sizes['out']:,}")
    say(f"lora        {out / LORA_WEIGHTS}")
    return out / LORA_WEIGHTS
