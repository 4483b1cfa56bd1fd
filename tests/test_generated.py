"""Data that the dense model draws itself, when there are no images."""

import json
from dataclasses import replace

import pytest
import torch

import secateur
from models import autoencoder, dit, half, output, sd3, unet
from secateur.base.errors import DataError, SecateurError
from secateur.cli import main
from secateur.data import generated
from secateur.io.manifest import apply_cut
from secateur.process.flow import FlowProcess
from secateur.process.from_config import process_from_config
from secateur.process.named import config_of
from secateur.process.sampling import generate_batch
from secateur.runs.data import encode_data, open_data
from secateur.runs.subject import open_subject
from training_runs import assert_same, smaller

REFIT = secateur.CompensationConfig(num_tuples=8, rows=500)
RECOVERY = secateur.RecoveryConfig(steps=2, batch_size=4, objective="distillation", weights={"denoising": 0.0})
FLOW = {"process": "flow", "device": "cpu"}


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch, tmp_path):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(generated, "STEPS", 3)


def drawn(text, model, process="flow"):
    subject = open_subject(model, process, device="cpu")
    return encode_data(open_data(text, subject), subject)


def test_samples_are_the_models_own_from_known_noise_with_the_labels_they_were_drawn_for():
    model = dit()
    dataset = drawn("generated:70", model)
    assert len(dataset) == 70
    batch = dataset.batch([3, 69])
    assert batch.class_labels.tolist() == [3, 9]
    labels = {"class_labels": torch.tensor([3, 9])}
    expected = generate_batch(model, FlowProcess(), [3, 69], (1, 8, 8), labels, num_inference_steps=3)
    torch.testing.assert_close(batch.sample, expected, rtol=1e-4, atol=1e-5)
    assert dataset.noise([3]).shape == (1, 1, 8, 8)
    assert len(drawn("generated", dit()).rows.ranges()) == 16


def test_a_model_of_few_steps_draws_in_these():
    model = dit()
    process = process_from_config(config_of("flow:2"))
    labels = {"class_labels": torch.tensor([3])}
    expected = generate_batch(model, process, [3], (1, 8, 8), labels, num_inference_steps=2)
    found = drawn("generated:8", model, "flow:2").batch([3]).sample
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_was_drawn_is_drawn_once_and_by_whom_it_was(monkeypatch):
    first = drawn("generated:8", dit())
    monkeypatch.setattr(generated, "generate", None)
    again = drawn("generated:8", dit())
    assert torch.equal(first.batch([7]).sample, again.batch([7]).sample)
    assert first.fingerprint == again.fingerprint != replace(first, rows=replace(first.rows, count=7)).fingerprint
    monkeypatch.undo()
    subject = open_subject(smaller(), "flow", device="cpu")
    assert open_data("generated:8", subject).fingerprint != first.fingerprint
    small, large = drawn("generated:8", unet()), drawn("generated:8", unet(sample_size=16))
    assert (small.shape, large.shape) == ((1, 8, 8), (1, 16, 16))
    assert small.fingerprint != large.fingerprint


def test_latents_without_their_autoencoder_have_no_range():
    latents = dit(in_channels=4, out_channels=4)
    assert drawn("generated:8", latents).batch(range(8)).sample.abs().max() > 1
    images = dit(in_channels=3, out_channels=3)
    assert drawn("generated:8", images).batch(range(8)).sample.abs().max() <= 1
    evaluation = secateur.EvaluationConfig(num_images=4, num_inference_steps=2, metrics=("consistency", "frechet"))
    with pytest.raises(SecateurError, match="take 1 or 3 channels, these have 4"):
        secateur.evaluate(latents, reference=latents, data="generated:4", evaluation=evaluation, **FLOW)


def test_a_compression_needs_no_images():
    run = secateur.compress(
        unet(),
        target="macs=60%",
        data="generated:16",
        process="ddpm",
        scoring=secateur.ScoringConfig(num_timesteps=2, num_images=8),
        cut=secateur.CutConfig(round_to=2),
        compensates=True,
        compensation=REFIT,
        records=True,
        book=secateur.BookConfig(num_tuples=8, held_out=2),
        recovery=RECOVERY,
        evaluation=secateur.EvaluationConfig(metrics=("loss",), num_images=4, num_inference_steps=2),
    )
    assert run.compensation.readers
    assert run.evaluation.data.name == "generated"


def test_the_dense_model_draws_for_the_pruned_one():
    dense = dit()
    pruned = apply_cut(dit(), half(dit()))
    data = drawn("generated:8", dense)
    one = secateur.compensate(pruned, dense, data="generated:8", compensation=REFIT, **FLOW)
    assert torch.equal(output(one), output(secateur.compensate(pruned, dense, data=data, compensation=REFIT, **FLOW)))
    one = secateur.finetune(pruned, teacher=dense, data="generated:8", recovery=RECOVERY, **FLOW)
    assert_same(one, secateur.finetune(pruned, teacher=dense, data=data, recovery=RECOVERY, **FLOW))
    book = secateur.record(dense, data="generated:8", recovery=RECOVERY, **FLOW)
    secateur.finetune(pruned, teacher=dense, book=book, data="generated:8", recovery=RECOVERY, **FLOW)
    with pytest.raises(DataError, match="give it as the teacher"):
        secateur.finetune(pruned, data="generated:8", recovery=RECOVERY, **FLOW)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(SecateurError, match=r"write generated:4096"):
        drawn("generated:many", dit())
    with pytest.raises(DataError, match="a decoder draws nothing"):
        secateur.rank(autoencoder(), data="generated", device="cpu")
    with pytest.raises(DataError, match="draws for texts"):
        secateur.rank(sd3(), data="generated", process="flow", device="cpu")


def test_the_command_takes_the_word(tmp_path):
    options = ["--data", "generated:8", "--scoring.num-images", "8", "--scoring.num-timesteps", "2"]
    main(["rank", "digits-sit", *options, "--device", "cpu", "--out", str(tmp_path / "run")])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"] == "generated:8"
