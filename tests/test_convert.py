"""Original DiT and SiT checkpoints: the converted model computes what the original does, or one line says why not."""

import argparse
import itertools
import json
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel
from safetensors.torch import save_file
from torch import nn

import secateur
from models import randomize
from original_models import GRID, HEADS, Original, OriginalSiT, inputs, positions_on_a_line, written
from sampled import generate_images
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.data.conditions import label_conditions
from secateur.io.original_dit import SCHEDULERS, convert_state_dict, kind_named, read_checkpoint
from secateur.models.predict import predict
from secateur.process.from_config import process_from_config
from secateur.process.sampling import generate, guided, initial_noise

DIT_TIMES = torch.cat([torch.arange(10), torch.arange(11, 1000, 41), torch.tensor([999])])
SIT_TIMES = torch.cat([torch.tensor([0.0, 1.0, 1e-4]), torch.rand(30, generator=torch.Generator().manual_seed(1))])


def assert_close(first, second, tolerance=1e-5):
    torch.testing.assert_close(first, second, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("learn_sigma", [True, False])
def test_a_converted_dit_computes_what_the_original_does(tmp_path, channels, learn_sigma):
    original = Original(channels, learn_sigma)
    loaded = secateur.load(written(tmp_path, original, "DiT-tiny-2.pt"))
    x, t, y = inputs(DIT_TIMES, channels)
    with torch.no_grad():
        assert_close(loaded.model(x, t, y).sample, original(x, t, y))
        assert_close(predict(loaded.model, x, t, {"class_labels": y}), original(x, t, y)[:, :channels])
    # Too small a difference for outputs to show.
    assert {module.eps for module in loaded.model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    assert loaded.scheduler_config.get("variance_type") == ("learned_range" if learn_sigma else None)
    assert loaded.process.prediction_type == "epsilon"
    assert loaded.process.scheduler().config.clip_sample is False


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_a_converted_sit_computes_what_the_original_does_in_plain_diffusers_too(tmp_path, learn_sigma):
    original = OriginalSiT(3, learn_sigma)
    out = written(tmp_path, original, "SiT-tiny-2.pt")
    x, t, y = inputs(SIT_TIMES, 3)
    for model in (secateur.load(out).model, DiTTransformer2DModel.from_pretrained(out, subfolder="transformer")):
        with torch.no_grad():
            assert_close(model.eval()(x, t, y).sample, original(x, t, y))


def test_a_converted_sit_samples_the_original_ode(tmp_path):
    original, steps, labels = OriginalSiT(), 20, torch.arange(4)
    with torch.no_grad():  # slow enough to stay inside [-1, 1], where no clamp hides a difference
        for parameter in original.final_layer["linear"].parameters():
            parameter.mul_(0.02)
    loaded = secateur.load(written(tmp_path, original, "SiT-tiny-2.pt"))
    assert loaded.process.convention == "sit"
    scheduler = loaded.process.scheduler()
    scheduler.set_timesteps(steps)
    times = (1 - scheduler.sigmas).tolist()
    assert (times[0], times[-1]) == (0, 1)
    sample = noise = initial_noise(range(4), (1, 8, 8)) / 4
    for now, after in itertools.pairwise(times):
        sample = sample + (after - now) * original(sample, torch.full((4,), now), labels)
    assert (sample - noise).abs().max() > 0.05
    assert sample.abs().max() < 1
    assert_close(
        generate(loaded.model, loaded.process, noise, {"class_labels": labels}, num_inference_steps=steps), sample, 1e-4
    )


@pytest.mark.parametrize("calls", [1, 4, 50])
def test_the_times_of_a_converted_sit_are_those_of_its_own_sampler(calls):
    scheduler = process_from_config(SCHEDULERS["sit"]).scheduler()
    scheduler.set_timesteps(calls)
    assert_close(1 - scheduler.sigmas.double(), torch.linspace(0, 1, calls + 1).double(), 1e-6)


def test_guidance_of_some_channels_is_that_of_the_original():
    """`forward_with_cfg` of DiT and SiT: "we apply classifier-free guidance on only three channels by default"."""
    output, null = torch.randn(2, 6, 4, 3, 3)
    expected = torch.cat([null[:, :3] + 4 * (output - null)[:, :3], output[:, 3:]], dim=1)
    assert torch.equal(guided(output, null, 4.0, 3), expected)
    assert torch.equal(guided(output, null, 4.0, None), null + 4 * (output - null))
    assert_close(guided(output, null, 1.0, 4), output)


def test_the_samples_of_seeds_are_those_of_the_original(tmp_path):
    original = OriginalSiT()
    loaded = secateur.load(written(tmp_path, original, "SiT-tiny-2.pt"))
    images = generate_images(
        loaded.model, loaded.process, range(4), (1, 8, 8), label_conditions([0, 1, 2, 3]), num_inference_steps=10
    )
    scheduler = loaded.process.scheduler()
    scheduler.set_timesteps(10)
    sample = initial_noise(range(4), (1, 8, 8))
    for now, after in itertools.pairwise((1 - scheduler.sigmas).tolist()):
        sample = sample + (after - now) * original(sample, torch.full((4,), now), torch.arange(4))
    assert_close(images, sample.clamp(-1, 1), 1e-4)


def test_plain_diffusers_needs_one_line_for_the_frequencies_of_a_dit(tmp_path):
    original = Original()
    out = written(tmp_path, original, "DiT-tiny-2.pt")
    model = DiTTransformer2DModel.from_pretrained(out, subfolder="transformer").eval()
    x, t, y = inputs(DIT_TIMES)
    with torch.no_grad():
        assert (model(x, t, y).sample - original(x, t, y)).abs().max() > 1e-3
        for block in model.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
        assert_close(model(x, t, y).sample, original(x, t, y))


@pytest.mark.parametrize(("kind", "model"), [("dit", Original), ("sit", OriginalSiT)])
def test_a_converted_model_is_inspected_sampled_and_pruned(tmp_path, kind, model, capsys):
    original, checkpoint, out = model(), tmp_path / "weights.pt", tmp_path / "out"
    torch.save(original.state_dict(), checkpoint)
    main(["convert", str(checkpoint), str(out), "--kind", kind, "--num-heads", str(HEADS)])
    main(["inspect", str(out)])
    main(["sample", str(out), "--out", str(tmp_path / "grid.png"), "--num-images", "4", "--num-inference-steps", "2"])
    if kind == "dit":  # whose variance is learned: an ancestral sampler takes the fixed one
        grid = tmp_path / "ancestral.png"
        main(["sample", str(out), "--out", str(grid), "--num-inference-steps", "3", "--scheduler", "DDPMScheduler"])
        assert grid.is_file()
    run = tmp_path / "run"
    main(["prune", str(out), "--target", "blocks=2", "--data", "digits", "--criterion", "magnitude", "--out", str(run)])
    assert "3 blocks of width 32, 4 heads" in capsys.readouterr().out
    removed = json.loads((run / "pruned" / "pruning.json").read_text())["steps"][0]["removed_blocks"]
    original.blocks = nn.ModuleList(
        block for i, block in enumerate(original.blocks) if f"transformer_blocks.{i}" not in removed
    )
    assert len(original.blocks) == 2
    x, t, y = inputs(DIT_TIMES if kind == "dit" else SIT_TIMES)
    with torch.no_grad():
        assert_close(secateur.from_pretrained(run / "pruned")(x, t, y).sample, original(x, t, y))
        assert_close(secateur.from_pretrained(run / "pipeline")(x, t, y).sample, original(x, t, y))


def test_the_ema_of_a_training_checkpoint_comes_first(tmp_path):
    ema, model = Original().state_dict(), randomize(Original(), seed=1).state_dict()
    training = {"model": model, "ema": ema, "opt": {"state": {}, "step": 3}, "args": argparse.Namespace(lr=1e-4)}
    torch.save(training, tmp_path / "0400000.pt")
    torch.save({"model": model}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    read = read_checkpoint(tmp_path / "0400000.pt")
    assert all(torch.equal(read[name], value) for name, value in ema.items())
    assert all(torch.equal(value, model[name]) for name, value in read_checkpoint(tmp_path / "model.pt").items())


def test_safetensors_and_half_precision(tmp_path):
    original = OriginalSiT().bfloat16()
    save_file(original.state_dict(), tmp_path / "SiT.safetensors")
    secateur.convert(tmp_path / "SiT.safetensors", tmp_path / "out", num_heads=HEADS)
    model = secateur.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    x, t, y = inputs(SIT_TIMES)
    with torch.no_grad():
        assert_close(model.float()(x, t, y).sample, original.float()(x, t, y), 0.05)


def test_the_vae_completes_a_diffusers_pipeline(tmp_path):
    torch.save(Original(4).state_dict(), tmp_path / "DiT.pt")
    small = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    vae = AutoencoderKL(latent_channels=4, **small)
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    secateur.convert(tmp_path / "DiT.pt", tmp_path / "out", num_heads=HEADS, vae=tmp_path / "vae")
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} == {".json", ".safetensors"}
    pipelines = [DiTPipeline.from_pretrained(tmp_path / "out", local_files_only=True)]
    secateur.convert(tmp_path / "DiT.pt", tmp_path / "bare", num_heads=HEADS)
    pipelines.append(DiTPipeline.from_pretrained(tmp_path / "bare", vae=vae, local_files_only=True))
    images = []
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        images.append(
            pipeline([1], 1.0, generator=generator, num_inference_steps=2, output_type="np", return_dict=False)[0]
        )
    assert np.array_equal(*images)
    assert secateur.load(tmp_path / "out" / "transformer").process.prediction_type == "epsilon"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("DiT-XL-2-256x256.pt", "dit"),
        ("SiT-XL-2-256.pt", "sit"),
        ("TinySiT-D14.safetensors", "sit"),
        ("my_dit.pt", "dit"),
        ("0400000.pt", None),
        ("visits.pt", None),
        ("DiT-to-SiT.pt", None),
    ],
)
def test_the_kind_that_a_name_says(name, kind):
    if kind is not None:
        assert kind_named(name) == kind
        return
    with pytest.raises(SecateurError, match="give --kind"):
        kind_named(name)


class Hostile:
    def __reduce__(self):
        return (print, ("unpickled",))


def with_changed(name, change):
    state = Original().state_dict()
    state[name] = change(state[name])
    return state


def without(name):
    state = Original().state_dict()
    del state[name]
    return state


BAD = {
    "nothing in it": ({}, "missing, the first x_embedder.proj.weight"),
    "another model": (nn.Linear(2, 2).state_dict(), "no DiT or SiT"),
    "no dictionary": (torch.ones(3), "no dictionary of tensors"),
    "no tensors": ({"epoch": 3}, "no dictionary of tensors"),
    "a module": (nn.Linear(2, 2), r"holds a torch.nn.modules.linear.Linear; only tensors"),
    "code": ({"a": Hostile()}, "holds a print; only tensors"),
    "missing": (without("blocks.1.attn.qkv.bias"), "it lacks 1 tensor, the first blocks.1.attn.qkv.bias"),
    "block missing": (
        {name: value for name, value in Original().state_dict().items() if "blocks.1." not in name},
        "it lacks 10 tensors, the first blocks.1.adaLN_modulation.1.bias",
    ),
    "unexpected": (Original().state_dict() | {"blocks.0.attn.q_norm.weight": torch.ones(8)}, "first blocks.0.attn.q_n"),
    "shape": (with_changed("blocks.2.mlp.fc1.weight", lambda value: value[:64]), r"fc1.weight has shape \(64, 32\)"),
    "dimensions": (with_changed("pos_embed", lambda value: value[0]), "3 dimensions"),
    "not square": (with_changed("pos_embed", lambda value: value[:, :15]), r"pos_embed has shape \(1, 15, 32\)"),
    "outputs": (with_changed("final_layer.linear.weight", lambda value: value[:6]), "final_layer.linear.weight has"),
    "integers": (with_changed("blocks.1.attn.qkv.weight", lambda value: value.int()), "blocks.1.attn.qkv.weight"),
    "positions": (with_changed("pos_embed", lambda value: value.roll(1, 1)), "pos_embed is not the sine-cosine"),
}


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["convert", *map(str, arguments)])
    assert caught.value.code == 1
    printed = capsys.readouterr()
    assert "unpickled" not in printed.out
    assert len(printed.err.strip().splitlines()) == 1
    return printed.err


@pytest.mark.parametrize(("value", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_checkpoint_ends_in_one_line_and_writes_nothing(tmp_path, capsys, value, message):
    torch.save(value, tmp_path / "DiT.pt")
    line = refused([tmp_path / "DiT.pt", tmp_path / "out", "--num-heads", 4], capsys)
    assert re.search(message, line)
    assert str(tmp_path / "DiT.pt") in line
    assert [path.name for path in tmp_path.iterdir()] == ["DiT.pt"]


@pytest.mark.parametrize("name", ["DiT.pt", "DiT.safetensors"])
@pytest.mark.parametrize("content", [b"", b"words\n" * 99, b"PK\x03\x04 half an archive"])
def test_a_damaged_file_ends_in_one_line(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    assert "no checkpoint" in refused([tmp_path / name, tmp_path / "out"], capsys)


def test_bad_arguments_end_in_one_line(tmp_path, capsys):
    checkpoint, out = tmp_path / "DiT.pt", tmp_path / "out"
    assert "is not a file" in refused([checkpoint, out], capsys)
    torch.save(Original().state_dict(), checkpoint)
    assert "give --num-heads" in refused([checkpoint, out], capsys)
    for heads, said in ((5, "do not divide"), (0, "num_heads is 0; give at least 1")):
        assert said in refused([checkpoint, out, "--num-heads", heads], capsys)
    torch.save(Original().state_dict(), tmp_path / "weights.pt")
    assert "give --kind" in refused([tmp_path / "weights.pt", out, "--num-heads", 4], capsys)
    vae = tmp_path / "vae"
    assert "config.json does not exist" in refused([checkpoint, out, "--num-heads", 4, "--vae", vae], capsys)
    secateur.convert(checkpoint, vae, num_heads=4)
    no_vae = refused([checkpoint, out, "--num-heads", 4, "--vae", vae / "transformer"], capsys)
    assert "no AutoencoderKL" in no_vae
    AutoencoderKL(latent_channels=4, block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "kl")
    assert "has 4 latent channels" in refused([checkpoint, out, "--num-heads", 4, "--vae", tmp_path / "kl"], capsys)
    out.mkdir()
    (out / "holiday.txt").write_text("sun")
    assert "not empty" in refused([checkpoint, out, "--num-heads", 4], capsys)
    assert [path.name for path in out.iterdir()] == ["holiday.txt"]


@pytest.mark.parametrize(("hidden", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_the_published_sizes_need_no_number_of_heads(hidden, heads):
    scaled = {32: hidden, 64: 2 * hidden, 96: 3 * hidden, 128: 4 * hidden, 192: 6 * hidden}
    state = {
        name: torch.empty([scaled.get(size, size) for size in value.shape], device="meta")
        for name, value in Original().state_dict().items()
    }
    column, row = torch.arange(GRID).repeat(GRID), torch.arange(GRID).repeat_interleave(GRID)
    state["pos_embed"] = torch.cat([positions_on_a_line(axis, hidden // 2) for axis in (column, row)], 1)[None]
    config, _ = convert_state_dict(state, "dit")
    assert (config["num_attention_heads"], config["num_layers"], config["sample_size"]) == (heads, 3, 8)
