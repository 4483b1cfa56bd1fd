"""Processes against their formulas, and the deterministic sampler."""

import logging
import warnings
from contextlib import suppress
from itertools import product

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
)

from models import dit, unet
from sampled import generate_images
from secateur.base.errors import ModelError, SecateurError
from secateur.base.rules import check
from secateur.data.conditions import label_conditions, null_conditions
from secateur.models.predict import predict
from secateur.process.base import denoising_error
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import EVEN_LEVELS, FlowProcess
from secateur.process.from_config import process_from_config
from secateur.process.grid import STEPS
from secateur.process.named import ProcessLike, config_of, is_process, over
from secateur.process.sampling import generate, initial_noise

X0 = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def alphas(timesteps):
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar) of the linear schedule, from its definition."""
    bar = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)[timesteps]
    return (value.sqrt().float().reshape(-1, 1, 1, 1) for value in (bar, 1 - bar))


def test_a_scheduler_is_no_process_and_warns_of_nothing_when_asked():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_process(DDPMScheduler())
        check("process", DDPMScheduler(), ProcessLike)
    assert is_process(DiffusionProcess())


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_diffusion_noises_and_targets_by_its_formulas(prediction_type):
    process = DiffusionProcess({"prediction_type": prediction_type})
    timesteps = torch.tensor([0, 500, 999])
    alpha, sigma = alphas(timesteps)
    torch.testing.assert_close(
        process.add_noise(X0, NOISE, timesteps), alpha * X0 + sigma * NOISE, rtol=1e-5, atol=1e-5
    )
    expected = {"epsilon": NOISE, "sample": X0, "v_prediction": alpha * NOISE - sigma * X0}[prediction_type]
    torch.testing.assert_close(process.target(X0, NOISE, timesteps), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(process.timesteps(torch.tensor([0.0, 0.4567, 0.9999])), torch.tensor([0, 456, 999]))


def test_flow_conventions_describe_one_process():
    u = torch.tensor([0.0, 0.25, 1.0])
    ours, sits = FlowProcess(), FlowProcess(convention="sit")
    torch.testing.assert_close(ours.timesteps(u), 1000 * u)
    torch.testing.assert_close(sits.timesteps(u), 1 - u)
    noisy = ours.add_noise(X0, NOISE, ours.timesteps(u))
    torch.testing.assert_close(noisy, sits.add_noise(X0, NOISE, sits.timesteps(u)))
    torch.testing.assert_close(noisy[0], X0[0])
    torch.testing.assert_close(noisy[2], NOISE[2])
    torch.testing.assert_close(ours.target(X0, NOISE, u), NOISE - X0)
    torch.testing.assert_close(sits.target(X0, NOISE, u), X0 - NOISE)


class Exact(torch.nn.Module):
    """The velocity field that leads every noise straight to `X0`, in either convention."""

    def __init__(self, convention):
        super().__init__()
        self.convention = convention

    def forward(self, x, timestep, return_dict=False):
        sigma = timestep / 1000 if self.convention == "diffusers" else 1 - timestep
        velocity = (x - X0) / sigma.reshape(-1, 1, 1, 1)  # x = (1 - sigma) x0 + sigma noise
        return (velocity if self.convention == "diffusers" else -velocity,)


@pytest.mark.parametrize("convention", ["diffusers", "sit"])
def test_the_flow_sampler_follows_an_exact_velocity_to_the_data(convention):
    process = FlowProcess(convention=convention)
    found = generate(Exact(convention), process, NOISE, num_inference_steps=7)
    torch.testing.assert_close(found, X0, rtol=1e-4, atol=1e-4)


def test_the_diffusion_sampler_is_ddim():
    model, process = unet(), DiffusionProcess()
    noise = initial_noise(range(2), (1, 8, 8))
    scheduler = DDIMScheduler.from_config(DDPMScheduler().config)
    scheduler.set_timesteps(5)
    sample = noise
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            sample = scheduler.step(model(sample, timestep).sample, timestep, sample).prev_sample
    torch.testing.assert_close(generate(model, process, noise, num_inference_steps=5), sample)


def test_images_depend_on_their_seed_and_not_on_the_batch():
    model, process = dit(), FlowProcess()
    arguments = (model, process, range(5, 12), (1, 8, 8), label_conditions(list(range(7))))
    together = generate_images(*arguments, num_inference_steps=3, batch_size=7)
    apart = generate_images(*arguments, num_inference_steps=3, batch_size=2)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert torch.equal(initial_noise([7], (1, 8, 8))[0], initial_noise([5, 6, 7], (1, 8, 8))[2])


def test_guidance_extrapolates_from_the_null_class():
    model, process = dit(), FlowProcess()
    noise, labels = initial_noise(range(2), (1, 8, 8)), {"class_labels": torch.tensor([1, 2])}
    one_step = {"num_inference_steps": 1, "null": null_conditions(model)}
    timestep = torch.full((2,), 1000.0)
    with torch.no_grad():
        conditional, null = (
            predict(model, noise, timestep, told) for told in (labels, {"class_labels": torch.full((2,), 10)})
        )
    expected = noise - (null + 3 * (conditional - null))
    found = generate(model, process, noise, labels, guidance_scale=3.0, **one_step)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_learned_variance_is_dropped():
    model = dit(out_channels=2)
    noise = initial_noise(range(2), (1, 8, 8))
    found = predict(model, noise, torch.ones(2), {"class_labels": torch.tensor([0, 1])})
    full = model(noise, torch.ones(2), torch.tensor([0, 1])).sample
    assert torch.equal(found, full[:, :1])


@pytest.mark.parametrize(
    ("process", "timesteps"),
    [
        *(
            (DiffusionProcess({"prediction_type": kind}), [0, 300, 700])
            for kind in ("epsilon", "sample", "v_prediction")
        ),
        (FlowProcess(), [10.0, 500.0, 900.0]),
        (FlowProcess(convention="sit"), [0.9, 0.5, 0.1]),
    ],
)
def test_the_right_prediction_stands_for_the_clean_sample(process, timesteps):
    timesteps = torch.tensor(timesteps)
    noisy, target = process.add_noise(X0, NOISE, timesteps), process.target(X0, NOISE, timesteps)
    torch.testing.assert_close(process.denoised(noisy, target, timesteps), X0, rtol=1e-4, atol=1e-4)


def test_a_sample_without_any_signal_stays_finite():
    process = DiffusionProcess({"rescale_betas_zero_snr": True})
    found = process.denoised(NOISE, NOISE * 1.01, torch.tensor([999] * 3))
    assert found.isfinite().all()


def test_the_error_is_the_mean_over_pixels_of_each_sample():
    process = FlowProcess()
    errors = denoising_error(Exact("diffusers"), process, X0, NOISE, torch.tensor([100.0, 500.0, 900.0]))
    torch.testing.assert_close(errors, torch.zeros(3), rtol=0, atol=1e-6)
    assert denoising_error(Exact("diffusers"), process, X0 + 1, NOISE, torch.tensor([500.0] * 3)).shape == (3,)


@pytest.mark.parametrize(
    "config",
    [
        {},  # dict(scheduler.config) does not say which scheduler it is
        {"_class_name": "KarrasVeScheduler"},
        {"_class_name": 5},
        {"_class_name": "DDPMScheduler", "prediction_type": "dreams"},
        {"_class_name": "DDPMScheduler", "prediction_type": ["epsilon"]},
        {"_class_name": "DDPMScheduler", "num_train_timesteps": 0},
        {"_class_name": "DDPMScheduler", "trained_betas": "x"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": "x"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "_secateur_flow_convention": "SiT"},
    ],
)
def test_unknown_processes_are_refused(config):
    with pytest.raises(ModelError):
        process_from_config(config)


ODD_VALUES = [None, True, -1, 0, 2**70, 1.5, float("nan"), float("inf"), "x", [], [1], {}, {"x": 1}]


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler, FlowMatchEulerDiscreteScheduler])
@pytest.mark.filterwarnings("ignore")
def test_any_value_of_a_scheduler_config_gives_a_process_or_a_line(kind):
    config = {**kind().config, "_class_name": kind.__name__}
    del config["_use_default_values"]  # diffusers would take the defaults of its keys
    refused = []
    for key, value in product(config, ODD_VALUES):
        with suppress(ModelError):
            process_from_config(config | {key: value})
            continue
        refused.append((key, value))
    assert ("num_train_timesteps", 0) in refused


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (DDPMScheduler(), DDIMScheduler(), True),  # filled-in defaults of two classes
        (DDPMScheduler(), DDPMScheduler(beta_schedule="scaled_linear"), False),
        (DDPMScheduler(), DDPMScheduler(prediction_type="v_prediction"), False),
        (DDPMScheduler(), DDPMScheduler(clip_sample=False), False),
        (DDPMScheduler(), DDPMScheduler(trained_betas=torch.linspace(1e-4, 0.02, 1000).tolist()), True),
        (FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(base_shift=0.7), True),  # not used
        (FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(shift=3.0), False),
    ],
)
def test_processes_are_equal_by_what_they_mean(one, other, equal):
    bare = {"_class_name": type(one).__name__, "beta_schedule": "linear"} if isinstance(one, DDPMScheduler) else {}
    first, second = (process_of(scheduler) for scheduler in (one, other))
    assert (first == second) is equal
    assert (repr(first) == repr(second)) is equal
    if bare:
        assert process_from_config(bare) == process_from_config(bare | {"_diffusers_version": "0.2.0"}) == first


@pytest.mark.parametrize("kind", [DDPMScheduler, LCMScheduler, HeunDiscreteScheduler])
def test_a_scheduler_in_memory_has_its_own_betas(kind):
    scheduler = kind()
    torch.testing.assert_close(
        process_from_config(config_of(scheduler)).scheduler().alphas_cumprod, scheduler.alphas_cumprod
    )


def test_betas_that_are_not_the_noise_levels_are_refused():
    with pytest.raises(ModelError, match="CogVideoXDDIMScheduler shifts the noise levels"):
        process_from_config(config_of(CogVideoXDDIMScheduler()))


def process_of(scheduler):
    return process_from_config({**scheduler.config, "_class_name": type(scheduler).__name__})


@pytest.mark.parametrize("name", ["ddpm", "flow", "flow-sit"])
def test_times_of_a_model_of_few_steps_are_those_of_its_sampler(name):
    process = process_from_config(config_of(f"{name}:4"))
    solver = process.scheduler()
    solver.set_timesteps(4)
    expected = sorted(process.sampler_to_model(solver.timesteps).tolist())
    usual = process_from_config(config_of(name))
    assert process == usual  # the same task
    assert repr(process) != repr(usual)  # but other draws, which a fingerprint tells apart
    found = process.timesteps(torch.linspace(0, 0.999, 100, dtype=torch.float64))
    assert sorted(found.unique().tolist()) == expected
    sample = torch.ones(2, 1)
    cleaner, noisier = process.timesteps(torch.tensor([0.0, 0.999]))
    noise = torch.zeros(2, 1)
    assert process.add_noise(sample, noise, torch.stack([cleaner, noisier])).diff(dim=0) < 0


def test_a_number_of_steps_behind_a_name():
    beside = {"_class_name": "DDPMScheduler"}
    assert over(config_of("auto:4"), lambda: beside) == beside | {STEPS: 4}
    assert over(config_of("auto"), lambda: beside) == beside
    assert over(config_of("ddpm"), lambda: {}) == config_of("ddpm")
    for wrong in ("auto:", "auto:four", "auto:4:4"):
        with pytest.raises(SecateurError, match=f"process is {wrong}; give auto, or auto:4"):
            config_of(wrong)
    with pytest.raises(ModelError, match="sampled in 0 steps; give 1 to 1000"):
        process_from_config(config_of("flow:0"))


@pytest.mark.parametrize("name", ["flow-sit", "flow"])
def test_diffusers_has_nothing_to_say_about_our_keys_of_a_config(name):
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    logger = logging.getLogger("diffusers.configuration_utils")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_secateur_flow_convention": "sit"}
        FlowMatchEulerDiscreteScheduler.from_config(config | {EVEN_LEVELS: True})
        process_from_config(config_of(name)).scheduler()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert not [record.getMessage() for record in said if "ignored" in record.getMessage()]
