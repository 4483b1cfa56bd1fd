"""The decoder of AutoencoderKL: ranked, cut, recovered, evaluated; encoder and latents do not change."""

import copy
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DiTPipeline
from safetensors.torch import load_file
from torch.nn import functional as F

import folders
import secateur
from models import half
from pipelines import dit_pipeline, image_folder, images_of, vae
from secateur import EvaluationConfig, RecoveryConfig, ScoringConfig
from secateur.base.files import read_json
from secateur.cli import main
from secateur.criteria import CRITERIA, score
from secateur.data import Batch, load_data
from secateur.data.autoencoder import open_autoencoder
from secateur.evaluation import evaluate_models
from secateur.evaluation.costs import count_macs
from secateur.evaluation.metrics.consistency import psnr
from secateur.io.checkpoint import save_pretrained
from secateur.io.manifest import apply_cut
from secateur.io.pipeline import load, save_pipeline
from secateur.models.families.autoencoder_kl import AutoencoderKLDecoder
from secateur.models.jacobian import higher_order
from secateur.models.network import as_network, example_inputs
from secateur.models.predict import predict
from secateur.models.registry import describe
from secateur.process.base import denoising_error
from secateur.process.reconstruction import reconstruction_by
from secateur.recovery import JacobianConfig, recover
from secateur.recovery.checkpoints import newest_checkpoint
from secateur.recovery.objectives import OBJECTIVES
from secateur.reporting import read_run, summarize
from secateur.schedules import ProgressiveConfig
from secateur.teacher import Draw
from training_runs import assert_logs_agree

SIZE = 16
SCORING = ScoringConfig(num_images=4)
RECOVERY = RecoveryConfig(steps=3, batch_size=4, checkpoint_every=2, log_every=1, objective="distillation")
EVALUATION = EvaluationConfig(metrics=("loss", "consistency"), num_images=100)


def network(**changes) -> AutoencoderKLDecoder:
    return AutoencoderKLDecoder(vae(sample_size=SIZE, **changes).eval())


def draw_for(count: int = 2) -> Draw:
    generator = torch.Generator().manual_seed(0)
    images, *normals = (torch.randn(count, 3, SIZE, SIZE, generator=generator) for _ in range(3))
    timesteps = torch.zeros(count, dtype=torch.int64)
    return Draw(images.clamp(-1, 1), normals[0], timesteps, {}, lambda k: normals[k])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    dit_pipeline(folder / "pipeline", vae(sample_size=SIZE))
    image_folder(folder / "images", size=SIZE)
    return folder


@pytest.fixture(scope="module")
def run(place):
    return folders.compress(
        str(place / "pipeline"),
        target="macs=60%",
        data=str(place / "images"),
        out=place / "run",
        recipe="decoder",
        scoring=SCORING,
        recovery=RECOVERY,
        evaluation=EVALUATION,
        component="vae",
        device="cpu",
        keep=True,
    )


@pytest.mark.slow
def test_compress_returns_a_pipeline_whose_decoder_alone_is_another(place, run):
    dense, pruned = (secateur.from_pretrained(folder) for folder in (place / "pipeline" / "vae", run / "model"))
    images = images_of(place / "images")
    with torch.no_grad():
        before, after = (model.encode(images).latent_dist for model in (dense, pruned))
    assert torch.equal(before.mean, after.mean)
    assert torch.equal(before.std, after.std)
    with torch.no_grad():
        assert not torch.allclose(dense.decode(before.mean).sample, pruned.decode(before.mean).sample)
    whole = secateur.load_pipeline(run / "pipeline")
    assert isinstance(whole, DiTPipeline)
    with torch.no_grad():
        assert torch.equal(whole.vae.decode(before.mean).sample, pruned.decode(before.mean).sample)
    drawn = whole([1], num_inference_steps=2, guidance_scale=1.0, output_type="np").images
    assert drawn.shape == (1, SIZE, SIZE, 3)
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (run / "pipeline" / weights).read_bytes() == (place / "pipeline" / weights).read_bytes()


def test_the_target_counts_the_decoder_alone(place, run):
    dense, pruned = (as_network(secateur.from_pretrained(f)) for f in (place / "pipeline" / "vae", run / "model"))
    macs = [count_macs(model, example_inputs(model, 1)) for model in (dense, pruned)]
    cut = read_json(run / "cut.json")
    assert [cut["before"]["macs"], cut["after"]["macs"]] == macs
    assert macs[1] <= 0.6 * macs[0]
    own = [p for name, p in dense.autoencoder.named_parameters() if name.startswith(("decoder.", "post_quant_conv."))]
    assert cut["before"]["parameters"] == sum(parameter.numel() for parameter in own)


def test_the_evaluation_compares_with_the_dense_decoder_and_with_the_images(place, run):
    found = read_json(run / "evaluation" / "evaluation.json")
    assert found["reconstructions"]
    assert found["config"]["num_images"] == 6  # no image twice
    dense, recovered = (found["models"][name]["estimates"] for name in ("dense", "recovered"))
    assert set(recovered) - set(dense) == {"ssim", "psnr", "mse"}
    assert {"image_ssim", "image_psnr", "image_mse", "denoising_loss"} <= set(dense)
    assert len(found["models"]["dense"]["denoising_loss"]["timesteps"]) == 1
    assert "decodes the same latents to" in (run / "report.html").read_text()


def test_reports_speak_of_reconstructions(run, tmp_path):
    said = (run / "tables" / "evaluation.md").read_text() + " ".join(summarize(read_run(run)).sentences)
    other = shutil.copytree(run, tmp_path / "other")
    page = secateur.report([run, other], out=tmp_path / "compared")
    said += (page.parent / "tables" / "comparison.md").read_text() + page.read_text()
    assert "| mean reconstruction error |" in said
    assert "SSIM to dense, same latents" in said
    assert "SSIM to dense on the same latents" in said
    assert "Each column is one image of the data" in said
    assert "denoising loss" not in said
    assert "same noise" not in said
    assert not (page.parent / "plots" / "denoising.png").exists()  # of one timestep


def test_psnr_to_the_image_is_that_of_a_reconstruction(place):
    loaded = load(place / "pipeline", component="vae")
    dataset = load_data(place / "images", (3, SIZE, SIZE))
    result, images = evaluate_models({"dense": loaded.model}, loaded.process, dataset, EVALUATION)
    value = result.models["dense"]["image_psnr"].value
    assert value == pytest.approx(psnr(images["dense"], images["real"]).mean().item(), rel=1e-6)
    unchanged = {"dense": loaded.model, "same": copy.deepcopy(loaded.model)}
    result, _ = evaluate_models(unchanged, loaded.process, dataset, EVALUATION)
    assert result.models["same"]["mse"].value == 0


@pytest.mark.slow
def test_a_pruned_autoencoder_is_worked_on_alone_and_serves_its_pipeline(place, run, tmp_path):
    data = {"data": str(place / "images"), "device": "cpu"}
    vae_alone = str(place / "pipeline" / "vae")
    tuned = folders.finetune(str(run / "pruned"), teacher=vae_alone, out=tmp_path / "tuned", recovery=RECOVERY, **data)
    compared = folders.evaluate(
        str(tuned / "model"), reference=vae_alone, out=tmp_path / "evaluation", evaluation=EVALUATION, **data
    )
    assert "ssim" in read_json(compared / "evaluation" / "evaluation.json")["models"]["recovered"]["estimates"]
    again = folders.prune(str(run / "model"), target="macs=70%", criterion="magnitude", out=tmp_path / "again", **data)
    assert len(secateur.from_pretrained(again / "pruned").config["_secateur_pruning"]["steps"]) == 3
    latents = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    decoded = open_autoencoder(run / "pipeline" / "vae").decode(0.5 * latents)
    with torch.no_grad():
        torch.testing.assert_close(decoded, secateur.from_pretrained(run / "model").decode(latents).sample)


def test_a_pipeline_of_two_pruned_parts_loads(place, run, tmp_path):
    loaded = load(run / "pipeline")
    apply_cut(loaded.model, half(loaded.model))
    whole = secateur.load_pipeline(save_pipeline(loaded, loaded.model, tmp_path / "both"))
    assert whole.transformer.config["_secateur_pruning"]
    assert whole.vae.config["_secateur_pruning"]


def test_the_process_draws_the_posterior_and_wants_the_image_back():
    model, draw = network(), draw_for()
    process = reconstruction_by(model.autoencoder)
    with torch.no_grad():
        posterior = model.autoencoder.encode(draw.sample).latent_dist
        normal = draw.noise.flatten(1)[:, : 2 * 8 * 8].reshape(2, 2, 8, 8)
        image = model.autoencoder.decode(posterior.mean + posterior.std * normal).sample
        error = denoising_error(model, process, draw.sample, draw.noise, draw.timesteps)
    torch.testing.assert_close(error, (image - draw.sample).square().flatten(1).mean(1))
    assert not process.add_noise(draw.sample, draw.noise, draw.timesteps).requires_grad


def test_encoders_are_distinguished_by_their_weights_and_not_by_their_dtype():
    model = vae()
    process = reconstruction_by(model)
    assert reconstruction_by(copy.deepcopy(model).to(torch.bfloat16).float()) != process
    assert reconstruction_by(copy.deepcopy(model).double()) == process
    other = copy.deepcopy(model)
    apply_cut(other, half(other))
    assert reconstruction_by(other) == process


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_ranks_a_decoder_at_its_one_timestep(criterion):
    model, draw = network(), draw_for()
    structure, process = describe(model), reconstruction_by(model.autoencoder)
    config = ScoringConfig(num_timesteps=5, num_images=2)
    ranking = score(model, process, Batch(draw.sample), structure, criterion, config)
    sizes = {} if CRITERIA[criterion].ranks == "blocks" else {name: dim.size for name, dim in structure.dims.items()}
    assert {name: len(values) for name, values in ranking.scores.items()} == sizes | dict.fromkeys(structure.blocks, 1)
    assert all(values.isfinite().all() for values in ranking.scores.values())
    if ranking.curve is not None:
        assert len(ranking.curve.losses) == 1
    if ranking.report is not None:
        assert len(ranking.report.timesteps) == 1


def test_taylor_is_weight_times_gradient_of_the_reconstruction_error():
    model, draw = network(), draw_for()
    process = reconstruction_by(model.autoencoder)
    batch = Batch(draw.sample)
    noise = torch.randn(draw.sample.shape, generator=torch.Generator().manual_seed(0))
    denoising_error(model, process, draw.sample, noise, draw.timesteps).mean().backward()
    products = {name: (p.detach() * p.grad).abs() for name, p in model.named_parameters()}
    expected = products["decoder.mid_block.resnets.0.conv1.weight"].sum((1, 2, 3))
    for name in ("conv1.bias", "norm2.weight", "norm2.bias"):
        expected += products[f"decoder.mid_block.resnets.0.{name}"]
    expected += products["decoder.mid_block.resnets.0.conv2.weight"].sum((0, 2, 3))
    model.zero_grad(set_to_none=True)
    found = score(model, process, batch, describe(model), "taylor").scores["decoder.mid_block.resnets.0.inner"]
    torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-7)


def projected(model, latents, v, timesteps, projection):
    """J'v by reverse mode, and Jv by differences."""
    if projection == "vjp":
        z = latents.clone().requires_grad_()
        return torch.autograd.grad(predict(model, z, timesteps), z, v)[0].flatten(1)
    with torch.no_grad():
        ahead, behind = (predict(model, latents + step * v, timesteps) for step in (1e-5, -1e-5))
    return ((ahead - behind) / 2e-5).flatten(1)


@pytest.mark.parametrize("projection", ["vjp", "jvp"])
@pytest.mark.parametrize("objective", ["first-order", "2ndmatch"])
def test_the_jacobian_of_image_by_latents_is_matched(objective, projection):
    teacher, draw = network().double(), draw_for()
    draw = replace(draw, sample=draw.sample.double())
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.decoder.conv_in.weight.mul_(1.1)
    process, config = reconstruction_by(teacher.autoencoder), JacobianConfig(projection=projection)
    with higher_order(projection):
        terms = OBJECTIVES[objective].terms(student, teacher, process, draw, config)
        terms["jacobian"].backward()
    assert student.decoder.conv_in.weight.grad.abs().sum() > 0
    latents = process.add_noise(draw.sample, draw.noise, draw.timesteps)
    like = latents if projection == "jvp" else draw.sample
    v = F.normalize(draw.normal(1).double().flatten(1)[:, : like[0].numel()]).reshape(like.shape)
    ours, theirs = (projected(model, latents, v, draw.timesteps, projection) for model in (student, teacher))
    growth = (ours.square().sum(1) - theirs.square().sum(1)).square()
    difference = (ours - theirs).square().sum(1)
    expected = growth.mean() / draw.sample[0].numel() if objective == "2ndmatch" else difference.mean()
    torch.testing.assert_close(terms["jacobian"].detach(), expected, rtol=1e-4, atol=0)
    with torch.no_grad():
        taught = F.mse_loss(*(predict(model, latents, draw.timesteps) for model in (student, teacher)))
    torch.testing.assert_close(terms["distillation"].detach(), taught)


def test_recovery_trains_the_decoder_alone_and_resumes_to_the_bit(tmp_path, place):
    dataset = load_data(place / "images", (3, SIZE, SIZE))
    dense = network()
    process = reconstruction_by(dense.autoencoder)
    encoder = copy.deepcopy(dense.autoencoder.encoder.state_dict())
    config = replace(RECOVERY, horizontal_flip=True)
    whole, stopped = copy.deepcopy(dense), copy.deepcopy(dense)
    average = recover(whole, process, dataset, config, tmp_path / "whole", dense)
    assert not torch.equal(whole.decoder.conv_in.weight, dense.decoder.conv_in.weight)
    assert all(torch.equal(average.autoencoder.encoder.state_dict()[name], value) for name, value in encoder.items())

    class Stopped(Exception):
        pass

    class Breaking:
        def __getattr__(self, name):
            return getattr(dataset, name)

        def __len__(self):
            return len(dataset)

        def batch(self, indices):
            self.batches = getattr(self, "batches", 0) + 1
            if self.batches > 2:
                raise Stopped
            return dataset.batch(indices)

    with pytest.raises(Stopped):
        recover(stopped, process, Breaking(), config, tmp_path / "stopped", dense)
    resumed = copy.deepcopy(dense)
    again = recover(resumed, process, dataset, config, tmp_path / "stopped", dense)
    for name, value in average.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


SCRIPT = """
import sys
import torch
from test_decoder import RECOVERY, SIZE, load_data, network, reconstruction_by, recover, replace
from training_runs import BALANCED
torch.set_num_threads(1)
dense, student = network(), network(layers_per_block=2)
config = replace(RECOVERY, steps=4, objective="2ndmatch", **BALANCED)
dataset = load_data(sys.argv[1], (3, SIZE, SIZE))
recover(student, reconstruction_by(dense.autoencoder), dataset, config, sys.argv[2], dense)
"""


@pytest.mark.torture
def test_two_processes_train_as_one(place, tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    for name, launcher in (("one", ()), ("two", torchrun)):
        command = [sys.executable, *launcher, tmp_path / "run.py", place / "images", tmp_path / name]
        subprocess.run(command, env=environment, check=True)
    assert_logs_agree(tmp_path / "one", tmp_path / "two")
    weights = (newest_checkpoint(tmp_path / name) / "model.safetensors" for name in ("one", "two"))
    first, second = map(load_file, weights)
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-5)


def test_half_precision_is_saved_and_loaded_whole(tmp_path):
    model = network()
    model.to(torch.bfloat16)
    apply_cut(model, half(model))
    save_pretrained(model, tmp_path / "vae")
    loaded = secateur.from_pretrained(tmp_path / "vae")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.bfloat16}
    z = torch.randn(1, 2, 8, 8, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(loaded.decode(z).sample, model(z)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "target"),
    [
        ({"recipe": "progressive", "progressive": ProgressiveConfig(stage_steps=1)}, "macs=70%"),
        pytest.param({"recipe": "entpruner-deviation"}, "blocks=5", marks=pytest.mark.slow),
    ],
)
def test_schedules_prune_a_decoder_while_it_trains(place, tmp_path, schedule, target):
    run = folders.compress(
        str(place / "pipeline"),
        target=target,
        component="vae",
        data=str(place / "images"),
        out=tmp_path / "run",
        scoring=SCORING,
        recovery=replace(RECOVERY, steps=20),
        evaluation=replace(EVALUATION, metrics=("loss",)),
        device="cpu",
        **schedule,
    )
    cut = read_json(run / "cut.json")
    pruned = as_network(secateur.from_pretrained(run / "model"))
    assert count_macs(pruned, example_inputs(pruned, 1)) == cut["after"]["macs"] < cut["before"]["macs"]


def test_what_a_decoder_cannot_do_is_refused_in_one_line(place, tmp_path, capsys):
    folder, data = str(place / "pipeline"), ["--data", str(place / "images")]
    of_vae = [folder, "--component", "vae"]

    def refused(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([*arguments, "--device", "cpu"])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    out = ["--out", str(tmp_path / "out")]
    assert "draws no samples" in refused("sample", *of_vae, *out)
    assert "draws no samples" in refused("evaluate", *of_vae, *data, *out, "--metrics", "ftle")
    assert "rfid compares with a dense" in refused("evaluate", *of_vae, *data, *out, "--metrics", "rfid")
    assert "takes latents, not noise; leave --process" in refused("rank", *of_vae, *data, *out, "--process", "ddpm")
    assert "nothing to encode" in refused("encode", *of_vae, *data)
    vae(sample_size=SIZE).save_pretrained(tmp_path / "other")
    other = secateur.from_pretrained(tmp_path / "other")
    with torch.no_grad():
        other.encoder.conv_in.bias.add_(1)
    other.save_pretrained(tmp_path / "other")
    against = ["--reference", str(place / "pipeline" / "vae")]
    assert "scheduler configs or encoders" in refused("evaluate", str(tmp_path / "other"), *data, *out, *against)
    vae(block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        latent_channels=4).save_pretrained(tmp_path / "wide")  # fmt: skip
    assert "latents are larger than its images" in refused("rank", str(tmp_path / "wide"), *data, *out)
    assert not (tmp_path / "out").exists()
