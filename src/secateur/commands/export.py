"""`secateur export`: a model as a file for another runtime, checked against the model."""

from __future__ import annotations

from pathlib import Path

from ..base.console import say
from ..base.distributed import one_process
from ..base.rules import Count, checked
from ..io.export import FORMATS, DtypeName, FormatName
from ..io.export import export as export_model
from ..io.locate import Component
from ..runs.folder import refuse_run
from ..runs.subject import open_weights
from .options import Model


@checked
def export(
    model: Model,
    *,
    format: FormatName,
    out: Path,
    component: Component | None = None,
    batch_size: Count = 1,
    size: Count | None = None,
    text_tokens: Count | None = None,
    dtype: DtypeName = "float32",
) -> Path:
    """Write a model for another runtime, and check the written file against the model.

    Writes OUT/model.onnx, OUT/model.pt2, OUT/model.safetensors or the folder OUT/model, and OUT/model.json: inputs,
    shapes, versions and the largest difference to the model. A file that computes something else is not kept.

    Args:
        model: model folder, pipeline folder, hub id, or an embedded model (digits-unet, digits-sit).
        format: onnx (needs secateur[export]), torch-export, diffusers, a folder that every command takes, or
            single-file, which ComfyUI and stable-diffusion.cpp read (Flux, SD3, Chroma, Qwen-Image, Wan; only blocks
            may have left).
        out: folder to write.
        component: which part of a pipeline: unet or transformer, by default the one that is there; vae is its decoder.
        batch_size: of every call of the file; 2 for guidance of one image. Does not matter to diffusers.
        size: height and width of the sample, by default the model's own; fixed in the file likewise.
        text_tokens: length of the text, by default that of diffusers' pipelines (Flux 512); fixed likewise.
        dtype: of weights, sample and output; onnx has no bfloat16. int8 (torch-export; needs secateur[int8]) and
            float8 (single-file) round the weights of linear layers only.

    Returns:
        What was written.
    """
    one_process("export")
    refuse_run(out)
    network = open_weights(model, "cpu", component)
    sizes = None if size is None else (size, size)
    about = export_model(network, out, format, batch_size=batch_size, size=sizes, text_tokens=text_tokens, dtype=dtype)
    for name, value in about["inputs"].items():
        say(f"input       {name} {value['dtype']} {value['shape']}")
    say(f"output      {about['output']['dtype']} {about['output']['shape']}")
    say(f"difference  {about['largest_difference']:.1e} at most, in outputs of up to {about['largest_output']:.3g}")
    say(f"precision   {about['precision_difference']:.1e} at most from the model as it was, by {dtype}")
    written = out / FORMATS[format].file
    say(f"written     {written}")
    return written
