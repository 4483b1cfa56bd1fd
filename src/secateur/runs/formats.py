"""Conversion from other formats, and export to other runtimes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import Unpack

from ..base.console import shown
from ..base.distributed import one_process
from ..base.errors import SecateurError
from ..base.files import atomic_folder, write_json
from ..base.rules import Count, checked
from ..io.export import FORMATS, DtypeName, FormatName
from ..io.export import export as write_export
from ..io.lora import refit_warning
from ..io.lora import slice_lora as sliced
from ..io.lora_files import LORA_WEIGHTS, lora_file, peft_metadata, read_lora
from ..io.manifest import library_versions, manifest_of
from ..io.original_dit import Kind
from ..io.original_dit import convert as write_conversion
from ..io.pipeline import Loaded, scheduler_beside
from ..process.named import config_of
from ..results.exported import ExportedFile, SlicedLora
from .arguments import WeightsArguments
from .folder import refuse_run
from .subject import open_weights, require_weights

PLACE = ("component", "subfolder", "variant", "revision", "token", "cache_dir")  # arguments that say which model


@checked
def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    kind: Kind | None = None,
    num_heads: Count | None = None,
    vae: str | Path | None = None,
) -> dict[str, Any]:
    """Convert an original DiT or SiT checkpoint to a diffusers pipeline folder that every other function takes.

    Args:
        checkpoint: .pt or .safetensors file: a state dict, or a training checkpoint, of which the EMA is taken.
        out: folder to write.
        kind: dit or sit, which the tensors do not show; by default, as the file name says.
        num_heads: attention heads, which no shape shows; by default, those of the published sizes.
        vae: folder of a diffusers VAE to copy into OUT, which then works on images; without it, on latents.

    Returns:
        The config of the model.

    Raises:
        SecateurError: the checkpoint cannot be read, or is of neither.
    """
    one_process("convert")
    refuse_run(out)
    return write_conversion(
        Path(checkpoint), Path(out), kind=kind, num_heads=num_heads, vae=None if vae is None else Path(vae)
    )


@checked
def export(
    model: Any,
    *,
    format: FormatName,
    out: str | Path,
    batch_size: Count = 1,
    size: Count | None = None,
    text_tokens: Count | None = None,
    dtype: DtypeName = "float32",
    progress: bool = False,
    **arguments: Unpack[WeightsArguments],
) -> ExportedFile:
    """Write a model for another runtime, and check the written file against the model.

    A file whose outputs differ is not kept.

    Args:
        model: folder, hub id, module, pipeline, or what `load` returned.
        format: onnx (needs secateur[export]), torch-export, diffusers (a folder that every function takes) or
            single-file, which ComfyUI and stable-diffusion.cpp read (Flux, Flux.2, SD3, Chroma, Qwen-Image, Z-Image,
            Wan; for models that lost blocks but no widths, Chroma neither).
        out: folder to write: OUT/model.onnx, OUT/model.pt2, OUT/model.safetensors or OUT/model, and OUT/model.json.
        batch_size: fixed batch size of the file; 2 for guidance of one image. Not used by diffusers.
        size: fixed height and width of the sample; by default the model's own.
        text_tokens: fixed length of the text; by default that of diffusers' pipelines (Flux 512).
        dtype: dtype of weights, sample and output; onnx has no bfloat16. int8 (torch-export) and float8
            (torch-export, single-file) are for the weights of linear layers; in torch-export they need secateur[int8].
        progress: show progress bars and print notes.
        arguments: those of `WeightsArguments`.

    Returns:
        The content of OUT/model.json (inputs, shapes, versions, largest difference to the model), and `written`, the
        file.

    Raises:
        SecateurError: the format or dtype is not available, or the outputs of the file differ.
    """
    one_process("export")
    refuse_run(out)
    with shown(progress):
        network = open_weights(model, "cpu", **arguments)
        require_weights(network)
        if not isinstance(model, str | Path):  # what is in memory stays as it is
            network = copy.deepcopy(network).cpu()
        sizes = None if size is None else (size, size)
        about = write_export(
            network,
            Path(out),
            format,
            batch_size=batch_size,
            size=sizes,
            text_tokens=text_tokens,
            dtype=dtype,
            scheduler=_scheduler_of(model, arguments),
        )
    return {**about, "written": Path(out) / FORMATS[format].file}


@checked
def slice_lora(
    lora: str | Path | Mapping[str, Tensor],
    *,
    model: Any,
    out: str | Path | None = None,
    **arguments: Unpack[WeightsArguments],
) -> dict[str, Tensor] | Path:
    """Slice a LoRA of the dense model so that it fits the pruned one; on what was kept, its effect is the same.

    Args:
        lora: .safetensors file of diffusers, peft or kohya, the folder that holds it, or its tensors by name.
        model: the pruned model or pipeline: a folder, a hub id, or an object in memory.
        out: folder for pytorch_lora_weights.safetensors, which `pipeline.load_lora_weights(OUT)` loads, and
            slicing.json, which lists layers and sizes before and after.
        arguments: those of `WeightsArguments`.

    Returns:
        The tensors of the sliced LoRA, which `pipeline.load_lora_weights` takes; with `out`, the file.

    Raises:
        SecateurError: a LoRA that cannot be read, or belongs to another model, or would be overwritten.
    """
    if out is not None:
        refuse_run(out)
        _check_apart(lora, Path(out) / LORA_WEIGHTS)
    before = dict(lora) if isinstance(lora, Mapping) else read_lora(lora)
    pruned = open_weights(model, "cpu", **arguments)
    after = sliced(before, pruned)
    if out is None:
        return after
    manifest = manifest_of(pruned)
    assert manifest is not None
    sizes = [sum(value.numel() for value in each.values()) for each in (before, after)]
    about: SlicedLora = {
        "lora": "in memory" if isinstance(lora, Mapping) else str(lora),
        "model": model if isinstance(model, str) else type(pruned).__name__,
        "manifest_sha256": manifest.digest,
        "tensors": {"in": len(before), "out": len(after)},
        "parameters": {"in": sizes[0], "out": sizes[1]},
        "warning": refit_warning(manifest),
        "versions": library_versions(),
    }
    with atomic_folder(Path(out)) as temporary:
        save_file(after, temporary / LORA_WEIGHTS, peft_metadata(after))
        write_json(temporary / "slicing.json", about)
    return Path(out) / LORA_WEIGHTS


def _scheduler_of(model: Any, arguments: WeightsArguments) -> Mapping[str, Any] | None:
    """The config of the scheduler that a model comes with; None if there is none."""
    if isinstance(model, str | Path):
        place: dict[str, Any] = {name: value for name, value in arguments.items() if name in PLACE}
        return scheduler_beside(model, **place)
    if isinstance(model, DiffusionPipeline):
        return config_of(model.components.get("scheduler"))
    return model.scheduler_config if isinstance(model, Loaded) else None


def _check_apart(lora: str | Path | Mapping[str, Tensor], written: Path) -> None:
    """Refuse to write over the LoRA that is read."""
    if not isinstance(lora, Mapping) and lora_file(Path(lora)).resolve() == written.resolve():
        raise SecateurError(
            f"{written} is the LoRA of the dense model, which would be overwritten; choose another --out"
        )
