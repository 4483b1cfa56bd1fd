"""Pruned models compile, export and cast; a file that computes something else is not kept."""

import copy
import json
import sys
import zipfile
from functools import partial

import pytest
import torch

import secateur
from models import dit, flux, half, inputs_for, pixart, sana, sd3, sdxl, unet, unet_condition
from secateur.base.errors import SecateurError
from secateur.io.checkpoint import save_pretrained
from secateur.io.export import FORMATS, Call, Format, export
from secateur.io.manifest import apply_cut, manifest_of
from secateur.models.network import example_inputs
from secateur.structure import Cut

BLOCKS = {unet: "mid_block.attentions.0", dit: "transformer_blocks.1"}
EVERY = [unet, dit, unet_condition, sdxl, pixart, sd3, flux, sana]


def pruned(make):
    model = apply_cut(make(), half(make()))
    return apply_cut(model, Cut({}, (BLOCKS[make],))) if make in BLOCKS else model


@pytest.mark.parametrize("make", [unet, dit])
def test_a_pruned_model_compiles_to_one_graph(make):
    model = pruned(make)
    check_compiled(model, torch.compile(model, fullgraph=True, backend="aot_eager"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [unet, dit])
def test_a_pruned_model_compiles_to_kernels(make):
    model = pruned(make)
    check_compiled(model, torch.compile(model, fullgraph=True))


@torch.no_grad()
def check_compiled(model, compiled):
    inputs = inputs_for(model)
    torch.testing.assert_close(compiled(**inputs)[0], model(**inputs)[0], atol=1e-5, rtol=1e-5)


def check(make, tmp_path, format, dtype, tolerance):
    model = pruned(make)
    about = export(copy.deepcopy(model), tmp_path / "out", format, batch_size=2, size=(8, 8), dtype=dtype)
    assert about == json.loads((tmp_path / "out" / "model.json").read_text())
    assert about["largest_difference"] <= tolerance * about["largest_output"]
    assert about["manifest_sha256"] == manifest_of(model).digest
    # Once more from outside, with other values than the exporter's.
    inputs = example_inputs(model, 2, (8, 8))
    first = next(iter(inputs))
    inputs[first] = inputs[first].flip(0)
    with torch.no_grad():
        expected = Call(model)(**inputs)
        cast = {name: value.to(getattr(torch, dtype)) if name == first else value for name, value in inputs.items()}
        found = FORMATS[format].read(tmp_path / "out" / about["file"])(cast if make in BLOCKS else inputs)
    assert found.dtype == getattr(torch, dtype)
    bound = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}[dtype]
    torch.testing.assert_close(found.float(), expected, atol=bound * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("make", [unet, dit])
@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        ("torch-export", "float32"),
        ("torch-export", "bfloat16"),
        pytest.param("torch-export", "float16", marks=pytest.mark.slow),
        ("diffusers", "float16"),
        ("diffusers", "bfloat16"),
    ],
)
def test_a_written_file_computes_what_the_model_does(make, format, dtype, tmp_path):
    check(make, tmp_path, format, dtype, tolerance=0)


@pytest.mark.parametrize("make", [unet, dit])
def test_onnxruntime_computes_what_the_model_does(make, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    check(make, tmp_path, "onnx", "float32", tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("format", ["onnx", "torch-export"])
def test_every_architecture_is_written(make, format, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    check(make, tmp_path, format, "float32", tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet, dit])
def test_half_precision_onnx(make, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    check(make, tmp_path, "onnx", "float16", tolerance=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("make", [pixart, flux, sana])
def test_half_precision_onnx_with_text(make, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    about = export(pruned(make), tmp_path / "out", "onnx", batch_size=2, size=(8, 8), dtype="float16")
    assert about["precision_difference"] > 0
    assert 0 < about["largest_difference"] <= 1e-2 * about["largest_output"]


@pytest.mark.slow
def test_a_file_that_onnxruntime_refuses_is_not_kept(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    with pytest.raises(SecateurError):
        export(pruned(sdxl), tmp_path / "out", "onnx", batch_size=2, size=(8, 8), dtype="float16")
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize(("make", "lost"), [(unet, 0.01), (partial(dit, num_attention_heads=8), 0.05)])
def test_int8_weights_of_a_pruned_model(make, lost, tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed")
    model = apply_cut(make(), half(make()))
    about = export(model, tmp_path / "out", "torch-export", dtype="int8")
    assert about["largest_difference"] == 0
    assert 0 < about["precision_difference"] < lost * about["largest_output"]
    export(apply_cut(make(), half(make())), tmp_path / "float", "torch-export")
    assert weight_bytes(tmp_path / "out" / "model.pt2") < weight_bytes(tmp_path / "float" / "model.pt2")


def weight_bytes(archive):
    """The weights alone: the graph of a model this small is larger, and grows."""
    return sum(
        item.file_size for item in zipfile.ZipFile(archive).infolist() if "/data/weights/weight_" in item.filename
    )


def test_a_missing_library_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    for format, dtype, library in (("onnx", "float32", "onnxruntime"), ("torch-export", "int8", "torchao")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(SecateurError, match="pip install") as caught:
            export(dit(), tmp_path / "out", format, dtype=dtype)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_what_cannot_work_is_refused_and_nothing_stays(tmp_path, monkeypatch):
    with pytest.raises(SecateurError, match="onnx in bfloat16 cannot be written"):
        export(dit(), tmp_path / "out", "onnx", dtype="bfloat16")
    with pytest.raises(SecateurError, match="UNet2DModel cannot be written as torch-export in float32"):
        export(unet(), tmp_path / "out", "torch-export", size=(3, 3))
    broken = unet()
    broken.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(SecateurError, match="not finite"):
        export(broken, tmp_path / "out", "diffusers")
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    def wrong(path):
        return lambda inputs: FORMATS["torch-export"].read(path)(inputs) * 1.001

    monkeypatch.setitem(FORMATS, "diffusers", Format("x", FORMATS["torch-export"].write, wrong, ("float32",)))
    with pytest.raises(SecateurError, match="does not compute what the model does"):
        export(dit(), tmp_path / "out", "diffusers")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_the_file_takes(tmp_path, capsys):
    save_pretrained(pruned(dit), tmp_path / "model")
    arguments = {"format": "diffusers", "out": tmp_path / "out"}
    written = secateur.export(str(tmp_path / "model"), dtype="bfloat16", **arguments)
    said = capsys.readouterr().out
    assert "class_labels int64 [1]" in said
    assert "hidden_states bfloat16 [1, 1, 8, 8]" in said
    assert secateur.from_pretrained(written).dtype == torch.bfloat16
    for wrong in ({"batch_size": 0}, {"size": -1}):
        with pytest.raises(SecateurError, match="give at least 1"):
            secateur.export(str(tmp_path / "model"), **arguments, **wrong)
