"""Pruned models compile, export and cast; a file whose outputs differ is not kept."""

import copy
import inspect
import json
import sys
import zipfile
from functools import partial

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.models.modeling_outputs import Transformer2DModelOutput

import secateur
from models import dit, flux, half, inputs_for, output, pixart, sana, sd3, sdxl, unet, unet_condition
from pipelines import dit_pipeline
from secateur.base.errors import SecateurError
from secateur.cli import main
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


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet, dit])
def test_a_pruned_model_compiles_to_one_graph(make):
    model = pruned(make)
    check_compiled(model, torch.compile(model, fullgraph=True, backend="aot_eager"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make", [pytest.param(dit, marks=pytest.mark.slow), pytest.param(unet, marks=pytest.mark.torture)]
)
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
    # Compared once more here, with other values than the exporter's.
    inputs = example_inputs(model, 2, (8, 8))
    first = next(iter(inputs))
    inputs[first] = inputs[first].flip(0)
    inputs = {name: value.float() if name == "timestep" else value for name, value in inputs.items()}
    with torch.no_grad():
        expected = Call(model)(**inputs)
        cast = {name: value.to(getattr(torch, dtype)) if name == first else value for name, value in inputs.items()}
        found = FORMATS[format].read(tmp_path / "out" / about["file"])(cast if make in BLOCKS else inputs)
    assert found.dtype == getattr(torch, dtype)
    bound = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}[dtype]
    torch.testing.assert_close(found.float(), expected, atol=bound * expected.abs().max().item(), rtol=0)


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("make", [unet, dit])
def test_onnxruntime_computes_what_the_model_does(make, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    check(make, tmp_path, "onnx", "float32", tolerance=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=[pytest.mark.torture] if make is sdxl else []) for make in EVERY]
)
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
    assert min(about["milliseconds"], about["milliseconds_before"]) > 0
    assert 0 < about["largest_difference"] <= 1e-2 * about["largest_output"]


@pytest.mark.slow
def test_a_file_that_onnxruntime_refuses_is_not_kept(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    with pytest.raises(SecateurError):
        export(pruned(sdxl), tmp_path / "out", "onnx", batch_size=2, size=(8, 8), dtype="float16")
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.parametrize("dtype", ["int8", "float8"])
@pytest.mark.parametrize(("make", "lost"), [(unet, 0.01), (partial(dit, num_attention_heads=8), 0.05)])
def test_one_byte_weights_of_a_pruned_model(make, lost, dtype, tmp_path):
    pytest.importorskip("torchao", reason="torchao is not installed")
    model = apply_cut(make(), half(make()))
    lost *= 4 if dtype == "float8" else 1
    about = export(model, tmp_path / "out", "torch-export", dtype=dtype)
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
    needed = (("onnx", "float32", "onnxruntime"), ("torch-export", "int8", "torchao.quantization"))
    for format, dtype, library in needed:
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(SecateurError, match="pip install") as caught:
            export(dit(), tmp_path / "out", format, dtype=dtype)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_model_in_memory_keeps_its_precision(tmp_path):
    model = dit()
    before = output(model)
    for dtype in ("float16", "bfloat16"):
        secateur.export(model, format="diffusers", out=tmp_path / dtype, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(output(model), before)


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


@pytest.mark.slow
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
    options = ["--format", "diffusers", "--out", str(tmp_path / "out"), "--dtype", "bfloat16"]
    main(["export", str(tmp_path / "model"), *options])
    said = capsys.readouterr().out
    assert "class_labels int64 [1]" in said
    assert "hidden_states bfloat16 [1, 1, 8, 8]" in said
    assert secateur.from_pretrained(next((tmp_path / "out").rglob("config.json")).parent).dtype == torch.bfloat16
    for wrong in ({"batch_size": 0}, {"size": -1}):
        with pytest.raises(SecateurError, match="give at least 1"):
            secateur.export(str(tmp_path / "model"), **arguments, **wrong)


def test_time_is_a_float_and_text_has_a_mask(tmp_path):
    for make, names in ((dit, {"timestep"}), (pixart, {"timestep", "encoder_attention_mask"})):
        about = export(make(), tmp_path / make.__name__, "torch-export", dtype="bfloat16", text_tokens=5)
        assert names <= set(about["inputs"])
        assert about["inputs"]["timestep"]["dtype"] == "float32"
        text = about["inputs"].get("encoder_hidden_states", {"shape": [1, 5]})
        assert text["shape"][1] == 5


@torch.no_grad()
def test_a_file_is_called_between_integers_and_with_padding(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = pixart()
    export(model, tmp_path / "out", "onnx", text_tokens=6, size=(8, 8))
    inputs = example_inputs(model, 1, (8, 8))
    inputs |= {"timestep": torch.tensor([0.35]), "encoder_hidden_states": inputs["encoder_hidden_states"][:, :6]}
    outputs = []
    for kept in (2, 6):
        inputs["encoder_attention_mask"] = (torch.arange(6) < kept).long()[None]
        found = FORMATS["onnx"].read(tmp_path / "out" / "model.onnx")(inputs)
        torch.testing.assert_close(found, Call(model)(**inputs), atol=1e-4, rtol=1e-4)
        outputs.append(found)
    assert not torch.allclose(*outputs, atol=1e-3)


def by_file(model, network, taken):
    """A `forward` of `model` that calls a written file instead."""
    signature = inspect.signature(model.forward)

    def forward(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        inputs = {name: given[name] for name in taken if given.get(name) is not None}
        rows = len(next(iter(inputs.values())))
        for name in ("timestep", "guidance"):
            if name in inputs:
                inputs[name] = inputs[name].float().expand(rows)
        for name in ("encoder_attention_mask", "img_ids", "txt_ids"):
            if name in inputs:
                inputs[name] = inputs[name].long()
        return Transformer2DModelOutput(network(inputs))

    return forward


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["torch-export", "onnx"])
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart", "sana", "dit", "ddpm"])
def test_a_pipeline_samples_by_a_written_file_as_by_its_network(name, format, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pipeline, call = sampled_pipeline(name, tmp_path)
    component = "unet" if hasattr(pipeline, "unet") else "transformer"
    model = getattr(pipeline, component)
    expected = call(pipeline)
    seen = {}

    def look(module, args, kwargs, output):
        seen.update(inspect.signature(module.forward).bind(*args, **kwargs).arguments)

    handle = model.register_forward_hook(look, with_kwargs=True)
    call(pipeline)
    handle.remove()
    first = next(iter(seen.values()))
    size = (8, 8) if first.ndim == 3 else tuple(first.shape[2:])
    text = seen.get("encoder_hidden_states")
    tokens = None if text is None else text.shape[1]
    about = export(model, tmp_path / "out", format, batch_size=len(first), size=size, text_tokens=tokens)
    network = FORMATS[format].read(tmp_path / "out" / about["file"])
    taken = list(example_inputs(model, 1, (8, 8)))
    monkeypatch.setattr(model, "forward", by_file(model, network, taken))
    torch.testing.assert_close(call(pipeline), expected, atol=2e-3, rtol=2e-3)


def sampled_pipeline(name, folder):
    """A small pipeline, and a function that samples latents or pixels with it over several steps."""
    options = {"num_inference_steps": 4, "output_type": "latent"}
    if name == "ddpm":
        pipeline = DDPMPipeline(unet(), DDPMScheduler())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline, lambda pipe: torch.from_numpy(
            pipe(num_inference_steps=4, output_type="np", generator=torch.manual_seed(0)).images
        )
    if name == "dit":
        pipeline = dit_pipeline(folder / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        options = {"guidance_scale": 1.0, "num_inference_steps": 4, "output_type": "np"}
        return pipeline, lambda pipe: torch.from_numpy(pipe([1], generator=torch.manual_seed(0), **options).images)
    text = pytest.importorskip("text_pipelines")
    pipeline = text.PIPELINES[name](folder / "pipeline")
    size = 32 if name == "sana" else 16
    options |= {"height": size, "width": size}
    if name in ("pixart", "sana"):
        options["use_resolution_binning"] = False
    return pipeline, lambda pipe: pipe("a cat", generator=torch.manual_seed(0), **options).images


@pytest.mark.parametrize("given", ["folder", "loaded", "pipeline", "part of a pipeline"])
def test_a_diffusers_folder_has_the_scheduler_beside_the_model(given, tmp_path):
    pipeline = dit_pipeline(tmp_path / "pipeline")
    expected = json.loads((tmp_path / "pipeline" / "scheduler" / "scheduler_config.json").read_text())
    save_pretrained(dit(), tmp_path / "folder", expected)
    models = {
        "folder": str(tmp_path / "folder"),
        "loaded": secateur.load(tmp_path / "folder"),
        "pipeline": pipeline,
        "part of a pipeline": str(tmp_path / "pipeline"),
    }
    secateur.export(models[given], format="diffusers", out=tmp_path / "out")
    found = json.loads((tmp_path / "out" / "model" / "scheduler_config.json").read_text())
    assert found["_class_name"] == expected["_class_name"]
    assert found["num_train_timesteps"] == expected["num_train_timesteps"]
    assert secateur.load(tmp_path / "out" / "model").process is not None
    if isinstance(models[given], str):
        main(["export", models[given], "--format", "diffusers", "--out", str(tmp_path / "by-command")])
        assert json.loads((tmp_path / "by-command" / "model" / "scheduler_config.json").read_text()) == found
