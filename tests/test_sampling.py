"""Samplers by name against a process whose answer is known, and images that depend on their seed only."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import secateur
import secateur.runs.sampling
from models import dit, unet
from pipelines import dit_pipeline
from sampled import generate_images
from secateur.base.errors import SecateurError
from secateur.cli import main
from secateur.data import load_data
from secateur.models.conditions import LABELS
from secateur.process.base import Process
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import TOKENS, FlowProcess
from secateur.process.samplers import check_sampler, sampler
from secateur.process.sampling import generate, initial_noise
from secateur.runs.sampling import default_guidance
from secateur.runs.subject import open_subject

SPREAD = 0.25  # standard deviation of the data


class Gaussian(nn.Module):
    """The exact network for data N(0, SPREAD^2), for which the flow from noise to data is a multiplication."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process, self.dummy = process, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool) -> tuple[Tensor]:
        if isinstance(self.process, DiffusionProcess):
            alphas = self.process._scheduler.alphas_cumprod.double().log()
            low = timestep.double().floor().long().clamp(0, len(alphas) - 2)
            part = timestep.double() - low
            alpha = ((1 - part) * alphas[low] + part * alphas[low + 1]).exp().view(-1, 1, 1, 1)
            return ((x * (1 - alpha).sqrt() / (alpha * SPREAD**2 + 1 - alpha)).float(),)
        sit = self.process.convention == "sit"
        sigma = (1 - timestep if sit else timestep / 1000).double().view(-1, 1, 1, 1)
        velocity = x * (sigma - (1 - sigma) * SPREAD**2) / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2)
        return ((-velocity if sit else velocity).float(),)


DIFFUSION = [
    None,
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "PNDMScheduler",
]
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
FLOW = [None, "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "FlowMatchHeunDiscreteScheduler"]


@pytest.mark.parametrize(
    ("process", "name"),
    [(DiffusionProcess({"clip_sample": False}), name) for name in DIFFUSION]
    + [(FlowProcess(), name) for name in FLOW]
    + [(FlowProcess({"shift": 3.0}), name) for name in FLOW]
    + [(FlowProcess(convention="sit"), name) for name in FLOW],
)
def test_every_sampler_integrates_the_same_flow(process: Process, name: str | None) -> None:
    noise = initial_noise(range(8), (1, 2, 2))
    found = generate(Gaussian(process), process, noise, num_inference_steps=100, scheduler=name)
    torch.testing.assert_close(found, SPREAD * noise, rtol=0.06, atol=0.01)


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler", "LCMScheduler"])
def test_stochastic_samplers_draw_from_the_seed_of_the_image(name: str) -> None:
    process, model = DiffusionProcess(), unet()
    options = {"num_inference_steps": 4, "scheduler": name}
    together = generate_images(model, process, range(7), (1, 8, 8), batch_size=7, **options)
    apart = generate_images(model, process, range(7), (1, 8, 8), batch_size=3, **options)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-4)
    last = generate_images(model, process, [6], (1, 8, 8), **options)
    torch.testing.assert_close(together[6:], last, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize(
    ("process", "name", "steps", "said"),
    [
        (
            DiffusionProcess(),
            "DPMSolverMultistep",
            10,
            "no scheduler 'DPMSolverMultistep'; did you mean .*DPMSolverMulti",
        ),
        (DiffusionProcess(), "FlowMatchEulerDiscreteScheduler", 10, "does not sample a diffusion model; use DDIM"),
        (FlowProcess(), "DDIMScheduler", 10, "does not sample a flow model; use FlowMatch"),
        (DiffusionProcess(), "PNDMScheduler", 2, "PNDMScheduler cannot take 2 steps"),
        (
            DiffusionProcess(),
            "UnCLIPScheduler",
            10,
            "UnCLIPScheduler does not fit the model's scheduler: .*only",
        ),
        (DiffusionProcess(), "CogVideoXDDIMScheduler", 10, "CogVideoXDDIMScheduler has other noise levels"),
        (DiffusionProcess(ZERO_SNR), "HeunDiscreteScheduler", 10, "HeunDiscreteScheduler has other noise levels"),
        (FlowProcess({TOKENS: 4096}), "DPMSolverMultistepScheduler", 8, "does not take the model's own shift"),
        (FlowProcess({"shift_terminal": 0.02}), "UniPCMultistepScheduler", 8, "does not take the model's own shift"),
        (DiffusionProcess(), None, 1001, "num_inference_steps is 1001; give 1 to 1000"),
    ],
)
def test_samplers_that_do_not_fit_are_one_line(process: Process, name: str | None, steps: int, said: str) -> None:
    with pytest.raises(SecateurError, match=said) as caught:
        check_sampler(process, name, steps)
    assert "\n" not in str(caught.value)


def test_the_process_s_own_scheduler_may_be_named() -> None:
    process = FlowProcess({TOKENS: 4096})
    own, named = (sampler(process, name) for name in (None, "FlowMatchEulerDiscreteScheduler"))
    for each in (own, named):
        each.set_timesteps(8)
    assert torch.equal(own.sigmas, named.sigmas)


def test_a_scheduler_takes_over_what_the_process_says() -> None:
    process = DiffusionProcess({"beta_start": 0.001, "prediction_type": "v_prediction"})
    config = sampler(process, "UniPCMultistepScheduler").config
    assert (config.beta_start, config.prediction_type) == (0.001, "v_prediction")
    for name in ("DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        assert sampler(DiffusionProcess(ZERO_SNR), name).config.rescale_betas_zero_snr


# ---------------------------------------------------------------------------------------------------- secateur sample


@pytest.fixture
def sit(tmp_path: Path) -> str:
    model = dit()
    model.save_pretrained(tmp_path / "sit")
    return str(tmp_path / "sit")


OPTIONS = ["--num-inference-steps", "2", "--process", "flow-sit"]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_a_folder_of_samples_resumes_where_it_stopped(sit: str, tmp_path: Path) -> None:
    command = ["sample", sit, "--out", str(tmp_path / "images"), *OPTIONS]
    main([*command, "--num-images", "12"])
    assert files(tmp_path / "images")[:3] == ["0/000000.png", "0/000010.png", "1/000001.png"]
    dataset = load_data(tmp_path / "images", (1, 8, 8))
    assert (len(dataset), dataset.class_names) == (12, tuple("0123456789"))
    kept = tmp_path / "images" / "0" / "000000.png"
    before = kept.read_bytes()
    kept.write_bytes(b"left alone")
    gone = tmp_path / "images" / "1" / "000011.png"
    drawn = gone.read_bytes()
    gone.unlink()
    main([*command, "--num-images", "13", "--batch-size", "5"])
    assert kept.read_bytes() == b"left alone" != before
    assert np.abs(pixels(gone.read_bytes(), tmp_path) - pixels(drawn, tmp_path)).max() <= 1  # batches round differently
    assert len(files(tmp_path / "images")) == 13


def test_a_folder_of_samples_of_another_autoencoder_is_refused(tmp_path: Path) -> None:
    pipeline = dit_pipeline(tmp_path / "pipeline")
    options: dict[str, Any] = {"num_images": 2, "num_inference_steps": 2, "device": "cpu", "out": tmp_path / "images"}
    secateur.sample(pipeline, **options)
    secateur.sample(pipeline, **options)
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias += 0.5
    with pytest.raises(SecateurError, match="was begun with another vae"):
        secateur.sample(pipeline, **options)


def test_other_pictures_than_those_that_are_written_are_refused(sit: str, tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match=r"a\.tiff names a picture; pictures are written as \.png, \.jpg"):
        secateur.sample(sit, out=tmp_path / "a.tiff", num_images=1)
    assert list(tmp_path.glob("*.tiff")) == []


def pixels(png: bytes, folder: Path) -> np.ndarray:
    (folder / "one.png").write_bytes(png)
    with Image.open(folder / "one.png") as image:
        return np.asarray(image).astype(int)


def test_a_stopped_grid_redraws_no_finished_image(sit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["sample", sit, "--out", str(tmp_path / "grid.png"), "--num-images", "12", "--batch-size", "4", *OPTIONS]
    main(command)
    whole = (tmp_path / "grid.png").read_bytes()
    (tmp_path / "grid.png").unlink()
    drawn: list[int] = []
    original = secateur.runs.sampling.generate_batch

    def stop_after_two(*arguments: Any, **options: Any) -> Tensor:
        if len(drawn) == 8:
            drawn.clear()
            raise KeyboardInterrupt
        drawn.extend(arguments[2])
        return original(*arguments, **options)

    monkeypatch.setattr("secateur.runs.sampling.generate_batch", stop_after_two)
    with pytest.raises(SystemExit):
        main(command)
    assert not (tmp_path / "grid.png").exists()
    main(command)
    assert drawn == [8, 9, 10, 11]
    assert (tmp_path / "grid.png").read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir() if "parts" in path.name] == []


@pytest.mark.slow
def test_processes_share_the_images_and_change_none(sit: str, tmp_path: Path) -> None:
    command = ["sample", sit, "--num-images", "11", "--batch-size", "4", *OPTIONS]
    main([*command, "--out", str(tmp_path / "one")])
    launch(2, [*command, "--out", str(tmp_path / "two")])
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert np.abs(pixels(one, tmp_path) - pixels(two, tmp_path)).max() <= 1


def launch(processes: int, arguments: list[str]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    found = subprocess.run(
        [*launcher, "-m", "secateur", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-2000:]


def test_conditions_of_single_samples() -> None:
    model, process = dit(), FlowProcess(convention="sit")
    labels = torch.tensor([3, 1, 4])
    images = generate_images(model, process, [5, 6, 7], (1, 8, 8), {LABELS: labels}, num_inference_steps=2)
    one = generate_images(model, process, [6], (1, 8, 8), {LABELS: labels[1:2]}, num_inference_steps=2)
    torch.testing.assert_close(images[1:2], one, rtol=1e-4, atol=1e-5)


def test_guidance_is_what_the_pipeline_takes_in_diffusers(tmp_path: Path) -> None:
    pipeline = dit_pipeline(tmp_path / "pipeline")
    subject = open_subject(str(tmp_path / "pipeline"), device="cpu")
    assert default_guidance(subject) == default_guidance(open_subject(pipeline)) == 4.0
    assert default_guidance(open_subject(str(tmp_path / "pipeline" / "transformer"), "ddpm", device="cpu")) == 1.0
    drawn = {"num_images": 2, "num_inference_steps": 2, "device": "cpu"}
    own, told = secateur.sample(pipeline, **drawn), secateur.sample(pipeline, guidance_scale=4.0, **drawn)
    assert torch.equal(own, told)
    assert not torch.equal(own, secateur.sample(pipeline, guidance_scale=1.0, **drawn))
