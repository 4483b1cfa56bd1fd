"""Finite-time Lyapunov exponents: check U9 of 2ndMatch's specification, and the Jacobian of a whole sampler."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from models import dit, unet
from secateur.data import load_data
from secateur.evaluation import EvaluationConfig, FtleOptions, evaluate_models, finite_time_lyapunov_exponents
from secateur.evaluation.metrics.ftle import sampler_steps
from secateur.models.predict import predict
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import Expert, FlowProcess
from secateur.process.sampling import generate

LINEAR = {"beta_start": 1e-4, "beta_end": 2e-2, "num_train_timesteps": 1000}


class Gaussian(nn.Module):
    """The exact epsilon-network of data N(0, c^2 I) under linear betas."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c
        self.one = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.kept = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)

    def factor(self, t: Tensor) -> Tensor:
        a2 = self.kept[t.long()]
        return (1 - a2).sqrt() / (a2 * self.c**2 + 1 - a2)

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.one * self.factor(timestep).view(-1, 1, 1, 1) * x,)


@pytest.mark.parametrize(("c", "expected"), [(0.25, -1.3906), (0.5, -0.6958), (0.05, -2.9981)])
def test_u9_gaussian_data(c, expected):
    model, process = Gaussian(c), DiffusionProcess(LINEAR)
    noise = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 1000, "iterations": 1}
    exponents = finite_time_lyapunov_exponents(model, process, noise, **options)
    last = sampler_steps(process, 1000)[-1]  # from t = 0 to the image, which U9 leaves out
    to_image = math.log(last.scale + last.gain * model.factor(torch.tensor(0)).item())
    assert (1000 * exponents - to_image).tolist() == pytest.approx([expected] * 2, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "process"),
    [
        (unet, DiffusionProcess({"prediction_type": "v_prediction", "clip_sample": True})),
        (unet, DiffusionProcess({"prediction_type": "sample", "clip_sample": True})),
        (dit, FlowProcess()),
        (dit, FlowProcess(convention="sit")),
    ],
)
def test_exponent_is_the_largest_singular_value_of_the_sampler(build, process):
    model, labels = build().double(), {"class_labels": torch.tensor([3])} if build is dit else {}
    noise = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    steps = sampler_steps(process, 3)

    def sampler(x: Tensor) -> Tensor:
        for step in steps:
            x = step.scale * x + step.gain * predict(model, x, step.timestep.expand(1), labels)
        return x

    with torch.no_grad():
        sampled = sampler(noise)
    unclipped = type(process)({**process.config, "clip_sample": False}, **convention(process))
    assert torch.allclose(sampled, generate(model, unclipped, noise, labels, num_inference_steps=3), atol=1e-5)
    jacobian = torch.autograd.functional.jacobian(lambda x: sampler(x.view_as(noise)).flatten(), noise.flatten())
    expected = torch.linalg.svdvals(jacobian)[0].log() / 3
    found = finite_time_lyapunov_exponents(model, process, noise, labels, num_inference_steps=3, iterations=40)
    assert found.item() == pytest.approx(expected.item(), abs=1e-4)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


class Scaling(nn.Module):
    """Predicts a multiple of the sample."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, x: Tensor, timestep: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (self.factor * x,)


def test_of_two_experts_each_takes_its_own_steps():
    noisy, clean = Scaling(0.5), Scaling(-0.25)
    process = FlowProcess(expert=Expert(0.5, 1.0, lambda: clean))
    sampler = process.scheduler()
    sampler.set_timesteps(8)
    factors = [
        1 + (after - before) * (noisy if before >= 0.5 else clean).factor
        for before, after in itertools.pairwise(sampler.sigmas)
    ]
    noise = torch.randn(2, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = finite_time_lyapunov_exponents(noisy, process, noise, num_inference_steps=8, iterations=1)
    expected = torch.stack(factors).log().mean().item()
    assert found.tolist() == pytest.approx([expected] * 2, abs=1e-6)
    assert clean.factor.requires_grad


def convention(process: FlowProcess | DiffusionProcess) -> dict[str, str]:
    return {"convention": process.convention} if isinstance(process, FlowProcess) else {}


def test_it_can_be_the_only_metric():
    config = EvaluationConfig(metrics=("ftle",), ftle=FtleOptions(2, 1), num_inference_steps=2)
    models = {"dense": dit(), "pruned": dit()}
    result, tensors = evaluate_models(models, FlowProcess(), load_data("digits"), config)
    for entry in result.models.values():
        assert math.isfinite(entry["ftle"].value)
        assert entry.parameters > 0
        assert entry.latency == {}
        assert (set(entry.estimates), entry.fidelity, entry.denoising_loss) == ({"ftle"}, None, None)
    assert result.models["dense"]["ftle"] == result.models["pruned"]["ftle"]
    assert "dense" not in tensors
