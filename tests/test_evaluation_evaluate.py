import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import folders
import secateur
from models import dit, unet
from secateur.base.errors import DataError, ModelError, SecateurError
from secateur.data import ArrayDataset, Batch, load_data
from secateur.evaluation import (
    EvaluationConfig,
    FtleOptions,
    LatencyOptions,
    SmallFeatures,
    evaluate_models,
    forward_passes,
    write_evaluation,
)
from secateur.evaluation.metrics.loss import denoising_loss_per_timestep
from secateur.evaluation.metrics.output_error import output_errors
from secateur.evaluation.plan import plan_evaluation
from secateur.io.manifest import apply_cut
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.results.codec import from_json, to_json
from secateur.results.evaluation import Evaluation
from secateur.structure import Cut

CONFIG = EvaluationConfig(
    num_images=6,
    num_real_images=30,
    num_inference_steps=2,
    batch_size=4,
    latency=LatencyOptions(2, (1, 2)),
)

DIGITS = replace(load_data("digits"), images=load_data("digits").images[:40], labels=load_data("digits").labels[:40])


@pytest.fixture
def features(tmp_path: Path) -> str:
    torch.manual_seed(0)
    return str(SmallFeatures(1, 10, width=8).save(tmp_path / "tiny"))


class Oracle(nn.Module):
    """Knows the clean image: its error at each timestep is exactly `bias` squared."""

    def __init__(self, process: DiffusionProcess, x0: Tensor, bias: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))
        self.process, self.x0 = process, x0

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not self.training
        zero = torch.zeros_like(self.x0)
        signal = self.process.add_noise(self.x0, zero, timestep)
        scale = self.process.add_noise(zero, torch.ones_like(zero), timestep)
        return ((x - signal) / scale + self.bias,)


def test_denoising_loss_of_a_known_error() -> None:
    process = DiffusionProcess()
    x0 = load_data("digits").batch(range(4)).sample
    model = Oracle(process, x0, 0.5).train()
    timesteps, losses = denoising_loss_per_timestep(model, process, Batch(x0), bins=4)
    assert timesteps.tolist() == [125, 375, 625, 875]
    torch.testing.assert_close(losses, torch.full((4,), 0.25), rtol=1e-3, atol=0)
    assert model.training


def test_denoising_noise_is_fixed_by_the_seed() -> None:
    process, batch, model = FlowProcess(convention="sit"), load_data("digits").batch(range(4)), dit(num_layers=1)
    timesteps, losses = denoising_loss_per_timestep(model, process, batch, bins=2)
    torch.testing.assert_close(timesteps, torch.tensor([0.75, 0.25]))
    assert torch.equal(losses, denoising_loss_per_timestep(model, process, batch, bins=2)[1])
    assert not torch.equal(losses, denoising_loss_per_timestep(model, process, batch, bins=2, seed=1)[1])


def test_batch_size_changes_no_result(features: str) -> None:
    results = []
    for batch_size in (3, 200):
        config = replace(CONFIG, features=features, batch_size=batch_size)
        result, images = evaluate_models({"d": dit(num_layers=1)}, FlowProcess(), DIGITS, config)
        results.append((result.final, images["d"]))
    (small, small_images), (large, large_images) = results
    torch.testing.assert_close(small_images, large_images, rtol=1e-4, atol=1e-5)
    assert small.denoising_loss.losses == pytest.approx(large.denoising_loss.losses, rel=1e-5)
    assert small["fd"].value == pytest.approx(large["fd"].value, rel=1e-3)


def test_evaluation_of_class_conditional_models(tmp_path: Path, features: str) -> None:
    dense, twin, small = dit(num_layers=2), dit(num_layers=2), dit(num_layers=1)
    models = {"dense": dense, "twin": twin, "small": small}
    config = replace(CONFIG, features=features, guidance_scale=1.5)
    result, images = evaluate_models(models, FlowProcess(convention="sit"), DIGITS, config)

    assert set(images) == {"dense", "twin", "small", "real", "class_labels"}
    assert images["class_labels"].tolist() == [0, 1, 2, 3, 4, 5]
    assert images["small"].shape == (6, 1, 8, 8)
    assert torch.equal(images["dense"], images["twin"])

    models = result.models
    assert "ssim" not in models["dense"].estimates
    assert models["twin"]["ssim"].value == pytest.approx(1)
    assert "psnr" not in models["twin"].estimates  # infinite
    assert models["small"]["ssim"].value < 0.999
    expected = (images["small"] - images["dense"]).square().mean().item()
    assert models["small"]["mse"].value == pytest.approx(expected, rel=1e-5)

    assert models["dense"].fidelity.metric == "FD[tiny]"
    assert models["dense"]["fd"].value == models["twin"]["fd"].value > 0
    assert (models["small"].fidelity.samples, models["small"].fidelity.reference_samples) == (6, 30)
    assert not models["small"].fidelity.full_rank

    assert result.macs.ratio == models["small"].macs / models["dense"].macs < 0.7
    assert len(models["small"].denoising_loss.losses) == 10
    mean = np.mean(models["small"].denoising_loss.losses)
    assert models["small"]["denoising_loss"].value == pytest.approx(mean, rel=1e-5)

    write_evaluation(result, tmp_path / "out", images)
    text = (tmp_path / "out" / "evaluation.json").read_text()
    assert from_json(Evaluation, json.loads(text, parse_constant=pytest.fail), "text") == result
    assert torch.equal(load_file(tmp_path / "out" / "samples.safetensors")["small"], images["small"])


def test_unconditional_model_that_diverged(features: str) -> None:
    dense, broken = unet(), unet()
    nn.init.constant_(broken.conv_out.bias, float("nan"))
    config = replace(CONFIG, features=features)
    result, images = evaluate_models({"d": dense, "b": broken}, DiffusionProcess(), DIGITS, config)
    assert "class_labels" not in images
    entry = result.models["b"]
    assert not {"ssim", "fd", "denoising_loss"} & entry.estimates.keys()
    assert entry.fidelity is None
    assert entry.denoising_loss.losses == (None,) * 10
    assert entry.notes == ("some samples are not finite, so they are not compared",)
    json.dumps(to_json(result), allow_nan=False)


def test_missing_features_are_a_note_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str | None, *rest: object) -> None:
        raise ModelError("none at hand")

    monkeypatch.setattr("secateur.evaluation.plan.feature_network", refuse)
    arguments = {"d": unet()}, DiffusionProcess(), DIGITS
    result, _ = evaluate_models(*arguments, CONFIG)
    assert result.notes == ("no frechet: none at hand",)
    assert result.models["d"].fidelity is None
    for named in ({"features": "FID"}, {"metrics": ("frechet",)}):
        with pytest.raises(ModelError, match="none at hand"):
            evaluate_models(*arguments, replace(CONFIG, **named))


def test_labels_that_the_model_needs(tmp_path: Path, features: str) -> None:
    np.savez(tmp_path / "grey.npz", images=np.random.default_rng(0).integers(0, 255, (5, 8, 8), dtype=np.uint8))
    unlabelled, config = load_data(tmp_path / "grey.npz"), replace(CONFIG, features=features)
    result, _ = evaluate_models({"d": dit(num_layers=1)}, FlowProcess(), unlabelled, config)  # by its null class
    assert result["denoising_loss"].value > 0
    with pytest.raises(DataError, match="no labels, which the model needs"):
        evaluate_models({"d": unet(num_class_embeds=10)}, DiffusionProcess(), unlabelled, config)
    with pytest.raises(DataError, match="has classes 0 to 9, the model knows 0 to 2"):
        evaluate_models({"d": unet(num_class_embeds=3)}, DiffusionProcess(), load_data("digits"), config)


def test_neighbours_need_enough_images_of_the_data(features: str) -> None:
    few = ArrayDataset("few", (1, 8, 8), (), torch.rand(4, 1, 8, 8), None)
    config = EvaluationConfig(metrics=("prdc",), num_images=8, features=features)
    with pytest.raises(SecateurError, match="prdc needs at least 6 images of the data, few has 4"):
        plan_evaluation({"dense": unet()}, DiffusionProcess(), few, config)


def test_questions_that_make_no_sense_are_refused_at_once() -> None:
    process = DiffusionProcess()
    with pytest.raises(ModelError, match="no null class or empty prompt"):
        evaluate_models({"d": unet()}, process, load_data("digits"), replace(CONFIG, guidance_scale=2.0))
    with pytest.raises(DataError, match=r"open it as load_data\(source, \(1, 8, 8\)\)"):
        evaluate_models({"d": unet()}, process, load_data("digits", (1, 16, 16)), CONFIG)
    one = replace(load_data("digits"), images=torch.zeros(1, 1, 8, 8), labels=torch.zeros(1, dtype=torch.int64))
    with pytest.raises(DataError, match="digits has 1 image"):
        evaluate_models({"d": unet()}, process, one, CONFIG)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_images", 1),
        ("num_real_images", 1),
        ("num_inference_steps", 0),
        ("batch_size", 0),
        ("seed", -1),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(SecateurError, match=rf"^evaluation {name} is .*; give "):
        EvaluationConfig(**{name: value})


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (LatencyOptions, "rounds", 1),
        (LatencyOptions, "batch_sizes", ()),
        (LatencyOptions, "batch_sizes", (1, 0)),
        (FtleOptions, "images", 1),
        (FtleOptions, "iterations", 0),
    ],
)
def test_options_that_make_no_sense_are_refused(options: type, name: str, value: object) -> None:
    with pytest.raises(SecateurError, match=rf"^evaluation \w+ {name} is .*; give "):
        options(**{name: value})


class Unsampled:
    """A process without a sampler, such as that of a user's own loss."""

    num_train_timesteps = 1000
    timesteps, add_noise, target = FlowProcess().timesteps, FlowProcess().add_noise, FlowProcess().target


def test_a_network_that_draws_no_samples_gets_costs_loss_and_output_error() -> None:
    models = {"dense": dit(num_layers=2), "twin": dit(num_layers=2), "small": dit(num_layers=1)}
    result, images = evaluate_models(models, Unsampled(), DIGITS, CONFIG)
    assert {key for key in result.metrics if "latency" not in key} == {"denoising_loss", "output_error"}
    assert result.models["twin"]["output_error"].value == 0
    assert 0 < result.models["small"]["output_error"].value < 4
    assert set(images) == {"real", "class_labels"}
    with pytest.raises(SecateurError, match="consistency compares samples, and DiTTransformer2DModel draws none here"):
        evaluate_models(models, Unsampled(), DIGITS, replace(CONFIG, metrics=("consistency",)))


def test_output_errors_by_hand() -> None:
    process, batch = FlowProcess(), load_data("digits").batch(range(3))
    reference, model = dit(num_layers=1), dit(num_layers=1)
    with torch.no_grad():
        model.proj_out_2.bias += 0.1
    distance, norm = output_errors(model, reference, process, batch, bins=2, batch_size=2)
    torch.testing.assert_close(distance, torch.full((3,), 2 * 64 * 0.01, dtype=torch.float64), rtol=1e-4, atol=0)
    assert (norm > 0).all()


def test_the_price_of_an_evaluation_is_in_forward_passes() -> None:
    config = EvaluationConfig(num_images=10, num_inference_steps=5, ftle=FtleOptions(2, 1))
    priced = forward_passes(config, FlowProcess())
    assert priced == {"samples": 50, "latency": 23 * 33, "loss": 1280}
    more = replace(config, metrics=("ftle", "kid", "output-error"), guidance_scale=2.0)
    assert forward_passes(more, FlowProcess()) == {"samples": 100, "ftle": 60, "output-error": 1280}
    assert forward_passes(replace(config, metrics=("loss",)), DiffusionProcess({"num_train_timesteps": 4})) == {
        "loss": 512
    }


def test_a_loss_takes_as_many_passes_as_its_price_says() -> None:
    model, passes = dit(num_layers=1), []
    model.register_forward_hook(lambda module, args, output: passes.append(len(output[0])))
    config = replace(CONFIG, metrics=("loss",))
    evaluate_models({"d": model}, FlowProcess(), load_data("digits"), config)
    assert sum(passes) - 1 == forward_passes(config, FlowProcess())["loss"]  # one counts the costs


def test_layers_of_a_model_without_some_blocks_stand_beside_the_dense_models(tmp_path: Path) -> None:
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    secateur.save_pretrained(dit(num_layers=4), tmp_path / "dense", flow)
    pruned = apply_cut(dit(num_layers=4), Cut(removed_blocks=("transformer_blocks.2",)))
    apply_cut(pruned, Cut(removed_blocks=("transformer_blocks.0",)))
    secateur.save_pretrained(pruned, tmp_path / "pruned", flow)
    run = folders.evaluate(
        str(tmp_path / "pruned"), reference=str(tmp_path / "dense"), data="digits", out=tmp_path / "run",
        metrics=("loss",), device="cpu",
    )  # fmt: skip
    lines = (run / "tables" / "layers.csv").read_text().splitlines()
    left = {line.split(",")[0]: line.split(",")[3] for line in lines}
    assert [left[f"transformer_blocks.{i}.attn1.to_q"] for i in range(4)] == ["–", "32×32", "–", "32×32"]
