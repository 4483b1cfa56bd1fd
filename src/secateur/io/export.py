"""Files that run without secateur or without Python: ONNX, torch.export, and diffusers folders in another precision.

A file is written, read back, and run beside the eager model on other inputs than those it was traced with.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from ..base.console import progress, silenced_libraries
from ..base.errors import SecateurError, first_line
from ..base.files import atomic_folder, write_json
from ..models.network import as_network, example_inputs, inference
from ..models.precision import BYTES, check_precision, saved
from ..models.precision import cast as cast_weights
from ..results.exported import Described, Exported
from .checkpoint import SCHEDULER, from_pretrained, save_pretrained
from .manifest import library_versions, manifest_of
from .pruned import class_name
from .single_file import caution, load_single_file, write_single_file

FormatName = Literal["onnx", "torch-export", "diffusers", "single-file"]
DtypeName = Literal["float32", "float16", "bfloat16", "float8", "int8"]
Inputs = Mapping[str, Any]
Network = Callable[[Inputs], Tensor]

TOLERANCES: dict[DtypeName, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "float8": 5e-2, "int8": 1e-4}
OPSET = 20
FLOAT8 = torch.float8_e4m3fn
OTHER_TIME = 437.25  # times the first timestep, which is 1 of 1000
CALLS = 3  # number of timed calls
EXACT = ("timestep", "t", "guidance")  # half precision cannot represent them


@dataclass(frozen=True)
class Format:
    """One file format: `write` makes it from a model and example inputs, `read` returns a function that runs it.

    `needs` lists optional libraries.
    """

    file: str
    write: Callable[[nn.Module, Inputs, Path, DtypeName], None]
    read: Callable[[Path], Network]
    dtypes: tuple[DtypeName, ...]
    needs: tuple[str, ...] = ()


class Call(nn.Module):
    """A diffusers model as a function from keyword tensors to one output tensor, even if the output is a list."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        output = self.model(**inputs, return_dict=False)[0]
        return torch.stack(output) if isinstance(output, list) else output


def export(
    model: nn.Module,
    out: Path,
    format: FormatName,
    *,
    batch_size: int = 1,
    size: tuple[int, int] | None = None,
    text_tokens: int | None = None,
    dtype: DtypeName = "float32",
    scheduler: Mapping[str, Any] | None = None,
) -> Exported:
    """Write `model` to the folder `out`, with a `model.json` that describes the file; return its content.

    Traced shapes are fixed: `batch_size`, `size`, the height and width of the sample, by default the config's, and
    `text_tokens`, by default those of diffusers' pipelines. Time is always a float32 input, since samplers use times
    between the integers. `scheduler` is the config of one, which a diffusers folder holds beside the model. Changes the
    dtype of `model` in place; int8 and float8 apply to the weights of linear layers.
    In torch-export these have scales, by torchao, and the rest is float32.

    Raises:
        SecateurError: the format does not support the dtype or the model, a library is missing, or the outputs of the
            written file differ from the model's; then nothing is left in `out`.
    """
    chosen = FORMATS[format]
    if dtype not in chosen.dtypes:
        raise SecateurError(
            f"{format} in {dtype} cannot be written or checked here; choose {' or '.join(chosen.dtypes)}"
        )
    _need(chosen.needs, "export")
    if format == "torch-export":
        check_precision(dtype)
    with (
        atomic_folder(out) as temporary,
        progress(f"export {format}", 3) as advance,
        inference(model),
        silenced_libraries(),
    ):
        try:
            inputs: Inputs = _inputs(model, batch_size, size, text_tokens)
            exact, exact_others = Call(model)(**inputs), Call(model)(**_others(inputs))
            dense_ms = _milliseconds(lambda: Call(model)(**inputs))
            inputs = _cast(model, inputs, dtype, format)
            output = Call(model)(**inputs)
            advance(1, "eager")
            chosen.write(model, inputs, temporary / chosen.file, dtype)
            if scheduler and format == "diffusers":
                write_json(temporary / chosen.file / SCHEDULER, dict(scheduler))
            advance(1, "written")
            network = chosen.read(temporary / chosen.file)
            difference, largest = _difference(model, network, _others(inputs), exact_others)
            milliseconds = _milliseconds(lambda: network(inputs))
            advance(1, "checked")
        except OSError:
            raise
        except Exception as error:  # tracers and runtimes may raise anything
            name = class_name(model)
            reason = first_line(_first_cause(error))
            raise SecateurError(f"{name} cannot be written as {format} in {dtype}: {reason}") from error
        if not difference <= TOLERANCES[dtype] * largest:  # also if it is NaN
            raise SecateurError(
                f"the {format} file of {class_name(model)} in {dtype} does not compute what the model does: it "
                f"differs by {difference:.1e} in outputs of up to {largest:.1e}; nothing was written"
            )
        manifest = manifest_of(model)
        about: Exported = {
            "format": format,
            "file": chosen.file,
            "class": class_name(model),
            "inputs": {name: _described(value) for name, value in named(inputs).items()},
            "output": _described(output),
            "dtype": dtype,
            "batch_size": batch_size,
            "opset": OPSET if format == "onnx" else None,
            "precision_difference": (output.double() - exact.double()).abs().max().item(),
            "bytes": sum(map(_bytes, temporary.glob(f"{chosen.file}*"))),  # large weights stand beside an onnx graph
            "milliseconds": milliseconds,
            "milliseconds_before": dense_ms,
            "largest_difference": difference,
            "largest_output": largest,
            "warning": caution(model) if format == "single-file" else "",
            "manifest_sha256": None if manifest is None else manifest.digest,
            "versions": library_versions() | {name: importlib.metadata.version(name) for name in chosen.needs},
        }
        write_json(temporary / "model.json", about)
    return about


def _first_cause(error: BaseException) -> BaseException:
    """What an exporter that reports its own stages failed at."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _inputs(model: nn.Module, batch_size: int, size: tuple[int, int] | None, text_tokens: int | None) -> Inputs:
    """`example_inputs` with a text of a given length, and dtypes that can hold every value of a sampler."""
    inputs = example_inputs(model, batch_size, size, text_tokens)
    if isinstance(getattr(model, "time_proj", None), nn.Embedding):  # has a row for each integer, and no times between
        return inputs
    return inputs | {name: inputs[name].float() for name in EXACT if name in inputs}


def named(inputs: Inputs, prefix: str = "") -> dict[str, Any]:
    """Nested inputs by flat names, as in ONNX: added_cond_kwargs_time_ids, or x_0 for a list of tensors."""
    flat: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, list) and all(isinstance(each, Tensor) for each in value):
            value = {str(i): each for i, each in enumerate(value)}
        flat |= named(value, f"{prefix}{name}_") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def traced(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The graph of `model` in eval mode for the shapes of `inputs`."""
    return torch.export.export(Call(model).eval(), (), dict(inputs), strict=False)


def _write_onnx(model: nn.Module, inputs: Inputs, path: Path, dtype: DtypeName) -> None:
    program = _without_idle_squeezes(traced(model, inputs))
    # Not optimized: onnxscript's optimizer makes Sana return NaN, and runtimes do their own optimization.
    options: dict[str, Any] = {"optimize": False, "verbose": False, "opset_version": OPSET}
    written = torch.onnx.export(program, (), kwargs=dict(inputs), dynamo=True, output_names=["output"], **options)
    assert written is not None
    written.save(path)


def _without_idle_squeezes(program: ExportedProgram) -> ExportedProgram:
    """PixArt squeezes an axis whose size is not 1: ignored by torch, an error in ONNX."""
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.squeeze.dim):
        source, axis = node.args
        if source.meta["val"].shape[axis] != 1:
            node.replace_all_uses_with(source)
            program.graph.erase_node(node)
    return program


def _read_onnx(path: Path) -> Network:
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {each.name for each in session.get_inputs()}

    def run(inputs: Inputs) -> Tensor:
        arrays = {name: value.numpy() for name, value in named(inputs).items() if name in taken}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run


def _write_program(model: nn.Module, inputs: Inputs, path: Path, dtype: DtypeName) -> None:
    program = traced(model, inputs)
    program.example_inputs = None  # an archive of weights and a graph; torch would pickle the inputs into it
    torch.export.save(program, path)


def _read_program(path: Path) -> Network:
    module = torch.export.load(path).module()
    return lambda inputs: module(**inputs)


def _write_diffusers(model: nn.Module, inputs: Inputs, path: Path, dtype: DtypeName) -> None:
    save_pretrained(model, path)


def _read_diffusers(path: Path) -> Network:
    model = Call(as_network(from_pretrained(path)))
    return lambda inputs: model(**inputs)


def _write_single_file(model: nn.Module, inputs: Inputs, path: Path, dtype: DtypeName) -> None:
    write_single_file(model, path, FLOAT8 if dtype == "float8" else None)


def _read_single_file(path: Path) -> Network:
    model = Call(load_single_file(path))
    return lambda inputs: model(**inputs)


def _cast(model: nn.Module, inputs: Inputs, dtype: DtypeName, format: FormatName) -> Inputs:
    """Give `model` its `dtype` in place, and return the inputs in it."""
    if dtype in BYTES and format == "torch-export":
        cast_weights(model, dtype)
        return inputs
    to = torch.bfloat16 if dtype == "float8" else getattr(torch, dtype)
    for tensor in saved(model).values():  # all: readers of single files expect one dtype
        tensor.data = tensor.data.to(to)
    if dtype == "float8":
        _round_linear_weights(model)
    cast = tree_map_only(Tensor, lambda value: value.to(to) if value.is_floating_point() else value, dict(inputs))
    return cast | {name: inputs[name] for name in EXACT if name in inputs}


def _round_linear_weights(model: nn.Module) -> None:
    """Round to float8 values (e4m3: three fraction bits), as read by programs without scales."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.to(FLOAT8).to(module.weight.dtype)


def _others(inputs: Inputs) -> dict[str, Any]:
    """Other values of the same shapes, so that traced constants are noticed."""
    changed = tree_map_only(Tensor, lambda value: value * 0.5 if value.is_floating_point() else value, dict(inputs))
    if "timestep" in inputs:
        time = inputs["timestep"]
        changed["timestep"] = time * OTHER_TIME if time.is_floating_point() else torch.full_like(time, 500)
    return changed


def _difference(model: nn.Module, network: Network, inputs: Inputs, exact: Tensor) -> tuple[float, float]:
    """The largest difference between `network` and `model`, and the largest output of `model`.

    Runtimes without kernels of half precision compute in float32, and are then closer to `exact`, the output before
    the model was cast, than the cast model is: that of Sana is off by 6% where the queries of its linear attention are
    nearly all zero.
    """
    expected, found = Call(model)(**inputs).double(), network(inputs).double()
    largest = expected.abs().max().item()
    if not math.isfinite(largest):
        raise ValueError("the model's own output is not finite")
    return min((found - each.double()).abs().max().item() for each in (expected, exact)), largest


def _milliseconds(call: Callable[[], Any]) -> float:
    """Median time of a few calls after a first one; only for comparing the file with the model."""
    call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _bytes(path: Path) -> int:
    """Size of a file, or of all files of a folder."""
    return sum(each.stat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def _described(value: Any) -> Described:
    """The description of an input; its value if it is fixed, such as sizes (Qwen-Image)."""
    if not isinstance(value, Tensor):
        return {"value": value}
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


def _need(libraries: tuple[str, ...], extra: str) -> None:
    try:
        with silenced_libraries():
            for name in libraries:
                importlib.import_module(name)
    except ImportError as error:
        raise SecateurError(
            f"{extra} needs {', '.join(libraries)}: pip install 'secateur[{extra}]' ({error})"
        ) from error


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(
        "model.onnx", _write_onnx, _read_onnx, ("float32", "float16"), ("onnx", "onnxscript", "onnxruntime")
    ),
    "torch-export": Format(
        "model.pt2", _write_program, _read_program, ("float32", "float16", "bfloat16", "int8", "float8")
    ),
    "single-file": Format(
        "model.safetensors", _write_single_file, _read_single_file, ("float32", "float16", "bfloat16", "float8")
    ),
    "diffusers": Format("model", _write_diffusers, _read_diffusers, ("float32", "float16", "bfloat16")),
}
