"""One model in several precisions, side by side in one table."""

import copy

import diffusers
import pytest
import torch

import architectures
import secateur
from models import dit, flux, half, unet
from secateur import EvaluationConfig
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.evaluation.metrics.latency import LatencyOptions
from secateur.io.checkpoint import save_pretrained
from secateur.io.manifest import apply_cut
from secateur.models.network import example_batch
from secateur.models.precision import cast_saved, dtype_of, in_precisions, precision_of
from secateur.models.predict import predict
from secateur.results import Evaluation, read_result

METRICS = ("latency", "output-error", "consistency")


def config(**changes):
    options = {"metrics": METRICS, "num_images": 4, "num_inference_steps": 2, "batch_size": 4}
    return EvaluationConfig(**options | changes, latency=LatencyOptions(rounds=2, batch_sizes=(1,)))


def test_half_precision_stands_beside_the_model_in_one_table(tmp_path):
    model = apply_cut(dit(), half(dit()))
    save_pretrained(model, tmp_path / "model")
    options = [
        "--evaluation.metrics",
        *METRICS,
        "--evaluation.num-images",
        "4",
        "--evaluation.num-inference-steps",
        "2",
    ]
    options += ["--evaluation.latency.rounds", "2", "--evaluation.latency.batch-sizes", "1"]
    place = ["--data", "digits", "--out", str(tmp_path / "out"), "--process", "ddpm", "--device", "cpu"]
    main(["evaluate", str(tmp_path / "model"), *place, *options, "--precisions", "bfloat16"])
    found = read_result(Evaluation, tmp_path / "out" / "evaluation" / "evaluation.json")
    whole, halved = found.models["pruned"], found.models["bfloat16"]
    assert halved.weights_bytes < 0.51 * whole.weights_bytes
    assert (whole.dtype, halved.dtype) == ("float32", "bfloat16")
    assert (halved.parameters, halved.macs) == (whole.parameters, whole.macs)
    assert 1e-7 < halved["output_error"].value < 1e-2
    assert 0.5 < halved["ssim"].value < 1
    assert halved.latency["1"].median_ms > 0
    assert "bfloat16" in (tmp_path / "out" / "report.html").read_text()
    assert next(model.parameters()).dtype == torch.float32


def test_an_evaluation_in_other_precisions_is_another_one(tmp_path):
    about = {"process": "ddpm", "evaluation": config(metrics=("latency",)), "out": tmp_path / "out"}
    secateur.evaluate(dit(), **about, precisions=("bfloat16",))
    with pytest.raises(SecateurError, match="was begun with another precisions"):
        secateur.evaluate(dit(), **about)


@pytest.mark.parametrize("name", ["int8", "float8"])
def test_what_needs_torchao_says_so_before_anything_is_written(name, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.quantization", None)
    with pytest.raises(SecateurError, match=rf"{name} needs torchao: pip install 'secateur\[int8\]'"):
        secateur.evaluate(
            dit(), data="digits", process="ddpm", evaluation=config(), precisions=(name,), out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "error"), [("int8", 1e-3), ("float8", 1e-2)])
def test_one_byte_weights_stand_beside_the_model(name, error):
    pytest.importorskip("torchao", reason="torchao is not installed")
    model = apply_cut(dit(num_attention_heads=8), half(dit(num_attention_heads=8)))
    found = secateur.evaluate(
        model, data="digits", process="ddpm", evaluation=config(), precisions=("bfloat16", name), device="cpu"
    )
    whole, narrow = found.models["pruned"], found.models[name]
    assert narrow.dtype == name
    assert narrow.weights_bytes < 0.45 * whole.weights_bytes
    assert narrow.macs == whole.macs
    assert 1e-6 < narrow["output_error"].value < error
    assert narrow["output_error"].value > found.models["bfloat16"]["output_error"].value


@torch.no_grad()
@pytest.mark.parametrize("name", ["int8", "float8"])
def test_a_network_that_begins_with_a_linear_layer_takes_what_it_took(name):
    pytest.importorskip("torchao", reason="torchao is not installed")
    model = flux(num_attention_heads=8)
    narrow = in_precisions(copy.deepcopy(model), (name,))[name]
    sample, conditions = example_batch(narrow, 2, (8, 8))
    assert (dtype_of(narrow), precision_of(narrow), sample.dtype) == (torch.float32, name, torch.float32)
    expected, found = (predict(each, sample, torch.tensor([30.0, 900.0]), conditions) for each in (model, narrow))
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


def tensors(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


def assert_same_tensors(one, other):
    first, second = tensors(one), tensors(other)
    assert {name: value.dtype for name, value in first.items()} == {name: each.dtype for name, each in second.items()}
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of Kandinsky itself
@pytest.mark.parametrize(
    "name", ["DiTTransformer2DModel", "WanTransformer3DModel", "Kandinsky5Transformer3DModel", "UNet2DModel"]
)
def test_a_model_in_half_precision_is_the_one_that_diffusers_loads(name, tmp_path):
    """Tables of angles, which are not saved, and the parts that a class keeps in float32 included."""
    dense = unet() if name == "UNet2DModel" else architectures.small(name)
    dense.save_pretrained(tmp_path / "dense")
    theirs = diffusers.AutoModel.from_pretrained(str(tmp_path / "dense"), torch_dtype=torch.bfloat16)
    assert_same_tensors(secateur.from_pretrained(tmp_path / "dense", torch_dtype=torch.bfloat16), theirs)
    pruned = secateur.prune(theirs, target="macs=80%", criterion="magnitude", process="flow")
    secateur.save_pretrained(pruned, tmp_path / "pruned")
    assert_same_tensors(secateur.from_pretrained(tmp_path / "pruned"), pruned)
    again = diffusers.AutoModel.from_pretrained(str(tmp_path / "pruned"), torch_dtype=torch.bfloat16)
    assert_same_tensors(again, pruned)


@pytest.mark.parametrize("weights", ["float32", "bf16"])
def test_a_model_in_half_precision_comes_back_from_training_with_its_own_tables(weights):
    model = dit()
    cast_saved(model, torch.bfloat16)
    recovery = secateur.RecoveryConfig(
        steps=1, batch_size=2, learning_rate=1e-2, warmup_steps=0, weight_precision=weights, objective="denoising"
    )
    trained = secateur.finetune(model, data="digits", process="ddpm", recovery=recovery)
    assert {each.dtype for each in trained.parameters()} == {torch.bfloat16}
    assert torch.equal(trained.pos_embed.pos_embed, dit().pos_embed.pos_embed)
