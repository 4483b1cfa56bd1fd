"""The embedded models: small on disk, and equal to the trained ones in single precision."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

import secateur
from secateur.io.locate import ASSETS, EMBEDDED
from secateur.io.weights import headers
from secateur.models.network import example_batch
from secateur.models.predict import predict
from secateur.runs.subject import open_subject

MEGABYTES = 16


@pytest.mark.parametrize("name", EMBEDDED)
def test_models_of_the_package_compute_in_single_precision(name: str) -> None:
    model = secateur.from_pretrained(name)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {entry.dtype for entry in headers(ASSETS / name, ASSETS / name, None).values()} == {"F16"}


@pytest.mark.parametrize("name", EMBEDDED)
def test_all_weights_that_round_to_those_on_disk_give_the_same_outputs(name: str) -> None:
    subject = open_subject(name)
    sample, conditions = example_batch(subject.model, 64)
    timesteps = subject.process.timesteps(torch.linspace(0.01, 0.99, 64))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        output = predict(subject.model, sample, timesteps, conditions)
        for parameter in subject.model.parameters():  # each within the rounding of half precision
            step = torch.exp2(parameter.abs().clamp(min=2**-14).log2().floor() - 10)
            parameter += step * (torch.rand(parameter.shape, generator=generator) - 0.5)
        moved = predict(subject.model, sample, timesteps, conditions)
    assert 0 < (moved - output).abs().max() < 1e-3 * output.abs().max()


def test_the_package_stays_small() -> None:
    package = Path(secateur.__file__).parent
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in package.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path, path.relative_to(package))
    assert len(archive.getvalue()) < MEGABYTES * 1e6
