"""Sana from the pipeline's folder to a pruned pipeline: its autoencoder, its text side, its scheduler, recovery."""

import pytest
import torch

pytest.importorskip("transformers")

import folders
import secateur
from pipelines import deep_compression, image_folder, images_of
from sampled import generate_images
from secateur import CutConfig, EvaluationConfig, RecoveryConfig, ScoringConfig
from secateur.base.errors import ModelError
from secateur.base.files import write_json
from secateur.cli import main
from secateur.data.autoencoder import open_autoencoder
from secateur.data.text import open_text_encoder
from secateur.io.pipeline import load
from secateur.models.network import input_shape
from secateur.process.flow import FlowProcess
from secateur.process.from_config import process_from_config
from secateur.process.sampling import initial_noise
from secateur.results import Evaluation, read_result
from secateur.runs.data import encode_data, open_data
from secateur.runs.subject import open_subject
from text_pipelines import sana

SCORING = ScoringConfig(num_timesteps=2, num_images=2)
RECOVERY = RecoveryConfig(steps=1, batch_size=2, log_every=1, objective="2ndmatch")
EVALUATION = EvaluationConfig(metrics=("loss", "consistency"), num_images=2, num_inference_steps=2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))


def test_samples_are_those_of_the_pipeline_with_its_own_scheduler(tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.data.text.KEPT", torch.float32)
    pipeline = sana(tmp_path, timestep_scale=0.5)
    loaded, noise = load(tmp_path), initial_noise([3, 4], (2, 8, 8))
    found = generate_images(
        loaded.model,
        loaded.process,
        [3, 4],
        input_shape(loaded.model),
        open_text_encoder(tmp_path, (32, 32))(["a cat", "dog"]),
        num_inference_steps=4,
        scheduler="DPMSolverMultistepScheduler",
        decode=open_autoencoder(loaded.vae).decode,
    )

    def drawn(**options):
        options |= {"height": 32, "width": 32, "num_inference_steps": 4, "use_resolution_binning": False}
        return pipeline(["a cat", "dog"], latents=noise, guidance_scale=1.0, output_type="pt", **options).images

    torch.testing.assert_close(found, 2 * drawn() - 1, rtol=0, atol=1e-4)
    assert (drawn() - drawn(complex_human_instruction=[])).abs().max() > 0.01


def test_the_scheduler_of_sana_describes_a_flow():
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0}
    process = process_from_config(config | {"prediction_type": "flow_prediction", "beta_start": 0.0001})
    assert isinstance(process, FlowProcess)
    assert process.scheduler().config.shift == 3.0
    with pytest.raises(ModelError, match="prediction type 'flow_prediction' is unknown"):
        process_from_config(config | {"prediction_type": "flow_prediction", "use_flow_sigmas": False, "beta_start": 1})


def test_latents_are_what_the_autoencoder_gives(tmp_path):
    sana(tmp_path / "pipeline")
    data = image_folder(tmp_path / "images", count=3, size=32, captions=True)
    loaded = load(tmp_path / "pipeline")
    subject = open_subject(loaded)
    dataset = encode_data(open_data(str(data), subject), subject)
    autoencoder = deep_compression()
    with torch.no_grad():
        expected = autoencoder.encode(images_of(data)).latent * 0.4
        decoded = autoencoder.decode(expected / 0.4).sample
    latents = dataset.batch(range(3)).sample
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(open_autoencoder(loaded.vae).decode(latents), decoded, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compress_returns_a_pipeline_ready_to_call(tmp_path, capsys):
    sana(tmp_path / "pipeline")
    data = image_folder(tmp_path / "images", count=3, captions=True)
    run = folders.compress(
        str(tmp_path / "pipeline"),
        target="macs=70%",
        recipe="diff-pruning",
        data=str(data),
        out=tmp_path / "run",
        criterion="taylor",
        scoring=SCORING,
        recovery=RECOVERY,
        evaluation=EVALUATION,
        cut=CutConfig(granularity="both", round_to=1),
        component="transformer",
        device="cpu",
    )
    found = read_result(Evaluation, run / "evaluation" / "evaluation.json")
    assert found.macs.ratio < 0.7
    assert found["ssim"].value < 1
    pipeline = secateur.load_pipeline(run / "pipeline")
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "use_resolution_binning": False}
    assert pipeline("a cat", output_type="np", **options).images.shape == (1, 32, 32, 3)
    capsys.readouterr()
    sample = ["sample", str(run / "pipeline"), "--prompt", "a cat", "--guidance-scale", "3", "--num-images", "1"]
    main([*sample, "--num-inference-steps", "2", "--out", str(tmp_path / "cat.png"), "--device", "cpu"])
    assert (tmp_path / "cat.png").is_file()


def test_sprint_is_refused_in_one_line(tmp_path):
    sana(tmp_path, guidance_embeds=True)
    with pytest.raises(ModelError, match="Sprint"):
        secateur.sample(str(tmp_path), prompt=("a cat",), out=tmp_path / "cat.png", num_images=1, device="cpu")
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    write_json(scheduler, {"_class_name": "SCMScheduler", "num_train_timesteps": 1000})
    with pytest.raises(ModelError, match="scheduler SCMScheduler is not supported"):
        load(tmp_path)
