"""`secateur export`: write a model for another runtime, and check the file against the model."""

from __future__ import annotations

from pathlib import Path

import secateur

from ..base.console import say
from ..io.export import DtypeName, FormatName
from ..runs.arguments import WeightsArguments
from .options import Weights


def export(
    on: Weights,
    *,
    format: FormatName,
    out: Path,
    batch_size: int = 1,
    size: int | None = None,
    text_tokens: int | None = None,
    dtype: DtypeName = "float32",
) -> None:
    """Write a model for another runtime, and check the written file against the model.

    Writes OUT/model.onnx, OUT/model.pt2, OUT/model.safetensors or the folder OUT/model, and OUT/model.json: inputs,
    shapes, versions and the largest difference to the model. A file whose outputs differ is not kept.

    Args:
        on: the model.
        format: onnx (needs secateur[export]), torch-export, diffusers (a folder that every command takes) or
            single-file, which ComfyUI and stable-diffusion.cpp read (Flux, Flux.2, SD3, Chroma, Qwen-Image, Z-Image,
            Wan; for models that lost blocks but no widths, Chroma neither).
        out: folder to write.
        batch_size: fixed batch size of the file; 2 for guidance of one image. Not used by diffusers.
        size: fixed height and width of the sample; by default the model's own.
        text_tokens: fixed length of the text; by default that of diffusers' pipelines (Flux 512).
        dtype: dtype of weights, sample and output; onnx has no bfloat16. int8 (torch-export) and float8
            (torch-export, single-file) are for the weights of linear layers; in torch-export they need secateur[int8].
    """
    where: WeightsArguments = {**on.arguments, "device": "cpu"}
    about = secateur.export(
        on.model,
        format=format,
        out=out,
        batch_size=batch_size,
        size=size,
        text_tokens=text_tokens,
        dtype=dtype,
        **where,
    )
    for name, value in about["inputs"].items():
        say(
            f"input       {name} {value['dtype']} {value['shape']}"
            if "shape" in value
            else f"fixed       {name} {value['value']}"
        )
    say(f"output      {about['output']['dtype']} {about['output']['shape']}")
    say(f"difference  {about['largest_difference']:.1e} at most, in outputs of up to {about['largest_output']:.3g}")
    say(f"precision   {about['precision_difference']:.1e} at most from the model as it was, by {dtype}")
    say(f"size        {about['bytes'] / 1e6:,.1f} MB")
    say(f"latency     {about['milliseconds']:.3g} ms a call here, {about['milliseconds_before']:.3g} ms as it was")
    if about["warning"]:
        say(f"warning     {about['warning']}")
    say(f"written     {about['written']}")
