"""Files that run without secateur or without Python: ONNX, torch.export, and diffusers folders in another precision.

A file is written, read back, and run beside the eager model on inputs that it was not traced with.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_map_only

from ..base.console import progress
from ..base.errors import SecateurError, first_line
from ..base.files import atomic_folder, write_json
from ..models.network import as_network, example_inputs, inference
from .checkpoint import from_pretrained, save_pretrained
from .manifest import library_versions, manifest_of

FormatName = Literal["onnx", "torch-export", "diffusers"]
DtypeName = Literal["float32", "float16", "bfloat16", "int8"]
Inputs = Mapping[str, Any]
Network = Callable[[Inputs], Tensor]

TOLERANCES: dict[DtypeName, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2, "int8": 1e-4}
OPSET = 20


@dataclass(frozen=True)
class Format:
    """One kind of file: `write` makes it from a model and example inputs, `read` gives back what it computes.

    `needs` are optional libraries, of the extra of the same name as the format.
    """

    file: str
    write: Callable[[nn.Module, Inputs, Path], None]
    read: Callable[[Path], Network]
    dtypes: tuple[DtypeName, ...]
    needs: tuple[str, ...] = ()


class Call(nn.Module):
    """A diffusers model as a function from keyword tensors to its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Tensor:
        return self.model(**inputs, return_dict=False)[0]


def export(
    model: nn.Module,
    out: Path,
    format: FormatName,
    *,
    batch_size: int = 1,
    size: tuple[int, int] | None = None,
    dtype: DtypeName = "float32",
) -> dict[str, Any]:
    """Write `model` to the folder `out`, with a `model.json` that describes the file, and return what that says.

    Traced shapes are fixed: `batch_size` and `size`, the height and width of the sample, by default the config's.
    Changes the dtype of `model` in place; int8 are the weights of linear layers, by torchao, the rest is float32.

    Raises:
        SecateurError: the format does not hold the dtype or the model, a library is missing, or the file that was
            written does not compute what the model does; nothing is left in `out` then.
    """
    chosen = FORMATS[format]
    if dtype not in chosen.dtypes:
        raise SecateurError(
            f"{format} in {dtype} cannot be written or checked here; choose {' or '.join(chosen.dtypes)}"
        )
    _need(chosen.needs, "export")
    _need(("torchao",) if dtype == "int8" else (), "int8")
    with atomic_folder(out) as temporary, progress(f"export {format}", 3) as advance, inference(model), _quiet():
        try:
            inputs: Inputs = example_inputs(model, batch_size, size)
            exact = Call(model)(**inputs)
            inputs = _cast(model, inputs, dtype)
            output = Call(model)(**inputs)
            advance(1, "eager")
            chosen.write(model, inputs, temporary / chosen.file)
            advance(1, "written")
            difference, largest = _difference(model, chosen.read(temporary / chosen.file), _others(inputs))
            advance(1, "checked")
        except OSError:
            raise
        except Exception as error:  # tracers and runtimes raise whatever they like
            name = type(model).__name__
            raise SecateurError(f"{name} cannot be written as {format} in {dtype}: {first_line(error)}") from error
        if not difference <= TOLERANCES[dtype] * largest:  # nor when it is not a number
            raise SecateurError(
                f"the {format} file of {type(model).__name__} in {dtype} does not compute what the model does: it "
                f"differs by {difference:.1e} in outputs of up to {largest:.1e}; nothing was written"
            )
        manifest = manifest_of(model)
        about = {
            "format": format,
            "file": chosen.file,
            "class": type(model).__name__,
            "inputs": {name: _described(value) for name, value in named(inputs).items()},
            "output": _described(output),
            "dtype": dtype,
            "batch_size": batch_size,
            "opset": OPSET if format == "onnx" else None,
            "precision_difference": (output.double() - exact.double()).abs().max().item(),
            "largest_difference": difference,
            "largest_output": largest,
            "manifest_sha256": None if manifest is None else manifest.digest,
            "versions": library_versions() | {name: importlib.metadata.version(name) for name in chosen.needs},
        }
        write_json(temporary / "model.json", about)
    return about


def named(inputs: Inputs, prefix: str = "") -> dict[str, Tensor]:
    """Nested inputs by flat names, as ONNX has them: added_cond_kwargs_time_ids."""
    flat: dict[str, Tensor] = {}
    for name, value in inputs.items():
        flat |= named(value, f"{prefix}{name}_") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def traced(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """`model` in eval mode as a graph of the shapes of `inputs`."""
    return torch.export.export(Call(model).eval(), (), dict(inputs), strict=False)


def _write_onnx(model: nn.Module, inputs: Inputs, path: Path) -> None:
    program = _without_idle_squeezes(traced(model, inputs))
    # Unoptimized: onnxscript's optimizer makes Sana give NaN, and runtimes optimize by themselves.
    options: dict[str, Any] = {"optimize": False, "verbose": False, "opset_version": OPSET}
    written = torch.onnx.export(program, (), kwargs=dict(inputs), dynamo=True, output_names=["output"], **options)
    assert written is not None
    written.save(path)


def _without_idle_squeezes(program: ExportedProgram) -> ExportedProgram:
    """PixArt squeezes an axis that is not of size 1: nothing to torch, an error to ONNX."""
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


def _write_program(model: nn.Module, inputs: Inputs, path: Path) -> None:
    program = traced(model, inputs)
    program.example_inputs = None  # an archive of weights and a graph; torch would pickle the inputs into it
    torch.export.save(program, path)


def _read_program(path: Path) -> Network:
    module = torch.export.load(path).module()
    return lambda inputs: module(**inputs)


def _write_diffusers(model: nn.Module, inputs: Inputs, path: Path) -> None:
    save_pretrained(model, path)


def _read_diffusers(path: Path) -> Network:
    model = Call(as_network(from_pretrained(path)))
    return lambda inputs: model(**inputs)


def _cast(model: nn.Module, inputs: Inputs, dtype: DtypeName) -> Inputs:
    """Give `model` its `dtype` in place, and return the inputs in it."""
    if dtype == "int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
        from torchao.utils import unwrap_tensor_subclass

        quantize_(model, Int8WeightOnlyConfig())
        unwrap_tensor_subclass(model)  # plain tensors, which torch writes raw; it would pickle torchao's
        return inputs
    to = getattr(torch, dtype)
    nn.Module.to(model, to)  # past diffusers' warning
    return tree_map_only(Tensor, lambda value: value.to(to) if value.is_floating_point() else value, dict(inputs))


def _others(inputs: Inputs) -> dict[str, Any]:
    """Other values in the same shapes, so that a constant that was traced is seen."""
    changed = tree_map_only(Tensor, lambda value: value * 0.5 if value.is_floating_point() else value, dict(inputs))
    if "timestep" in inputs and not inputs["timestep"].is_floating_point():
        changed["timestep"] = torch.full_like(inputs["timestep"], 500)
    return changed


def _difference(model: nn.Module, network: Network, inputs: Inputs) -> tuple[float, float]:
    """The largest difference between `network` and `model`, and the largest output of `model`."""
    expected, found = Call(model)(**inputs).double(), network(inputs).double()
    largest = expected.abs().max().item()
    if not math.isfinite(largest):
        raise ValueError("the model's own output is not finite")
    return (found - expected).abs().max().item(), largest


def _described(value: Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what other libraries say about each other."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _need(libraries: tuple[str, ...], extra: str) -> None:
    try:
        with _quiet():
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
    "torch-export": Format("model.pt2", _write_program, _read_program, ("float32", "float16", "bfloat16", "int8")),
    "diffusers": Format("model", _write_diffusers, _read_diffusers, ("float32", "float16", "bfloat16")),
}
