"""Text models whose latents and conditions are tensors in memory."""

from collections.abc import Mapping

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

import secateur
from models import chroma, flux, pixart, randomize, sana, sd3, sdxl, unet_condition
from recent_models import lumina_2, qwen_image, z_image
from secateur import EvaluationConfig, Recipe, RecoveryConfig, ScoringConfig
from secateur.base.errors import DataError, ModelError
from secateur.models.network import TEXTS, example_batch

SCHEDULER = DDPMScheduler(num_train_timesteps=20)
EVALUATION = EvaluationConfig(
    num_images=4, num_inference_steps=2, batch_size=2, bootstrap=10, metrics=("loss", "consistency")
)


def text_data(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(8, 4, 8, 8, generator=generator),
        "encoder_hidden_states": torch.randn(8, 5, 12, generator=generator),
    }


def rows_of(data: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor[row] for name, tensor in data.items()} for row in range(len(data["latents"]))]


def test_a_compression_samples_and_validates_by_the_conditions_of_the_data():
    recipe = Recipe(
        scoring=ScoringConfig(num_timesteps=2, num_images=4),
        recovery=RecoveryConfig(steps=2, batch_size=2, warmup_steps=0, validation_every=1),
        evaluation=EVALUATION,
    )
    about = {"process": SCHEDULER, "device": "cpu"}
    run = secateur.compress(unet_condition(), target="macs=70%", data=rows_of(text_data()), recipe=recipe, **about)
    assert run.evaluation.final["ssim"].value < 1


def test_kept_samples_are_of_the_same_conditions(tmp_path):
    dense, other = unet_condition(), unet_condition()
    with torch.no_grad():
        other.conv_out.weight.mul_(0.9)
    about = {"reference": dense, "process": SCHEDULER, "device": "cpu", "evaluation": EVALUATION, "cache": tmp_path}
    first = secateur.evaluate(other, data=rows_of(text_data()), **about)
    again = secateur.evaluate(other, data=rows_of(text_data()), **about)
    prompts = text_data() | {"encoder_hidden_states": text_data(1)["encoder_hidden_states"]}
    others = secateur.evaluate(other, data=rows_of(prompts), **about)
    assert first.final["ssim"].value == again.final["ssim"].value != others.final["ssim"].value


def test_guidance_needs_an_empty_prompt():
    with pytest.raises(ModelError, match="no null class or empty prompt to guide UNet2DConditionModel away from"):
        secateur.evaluate(
            unet_condition(),
            data=rows_of(text_data()),
            process=SCHEDULER,
            evaluation=EvaluationConfig(num_images=4, guidance_scale=2.0),
        )


SCORING = ScoringConfig(num_timesteps=1, num_images=4, batch_size=2)
OTHERS = (unet_condition, sd3, pixart, flux, sana, lumina_2, qwen_image)
MODELS = (sdxl, chroma, z_image, *(pytest.param(make, marks=pytest.mark.slow) for make in OTHERS))


def latents_for(model: nn.Module) -> dict[str, torch.Tensor]:
    """Four latents beside all conditions that the architecture takes; a mask is of texts of several lengths."""
    sample, conditions = example_batch(model, 4, (8, 8))
    texts = {name: value[:, :16] if name in TEXTS else value for name, value in conditions.items()}
    mask = (torch.arange(16) < torch.tensor([[4], [7], [16], [2]])).long()
    return {"latents": sample, **{name: mask if "mask" in name else value for name, value in texts.items()}}


def scores(model: nn.Module, data: dict[str, torch.Tensor]) -> Mapping[str, float]:
    about = {"criterion": "deviation", "scoring": SCORING, "process": SCHEDULER, "device": "cpu"}
    return secateur.rank(model, data=rows_of(data), **about).blocks


@pytest.mark.parametrize("make", MODELS)
def test_any_architecture_takes_its_conditions_from_memory(make):
    model = randomize(make())
    data = latents_for(model)
    others = data | {"encoder_hidden_states": data["encoder_hidden_states"].flip(0)}
    assert scores(model, data) != scores(model, others)


@pytest.mark.parametrize("make", MODELS)
def test_a_missing_condition_is_named(make):
    model = make()
    data = latents_for(model)
    for missing in (name for name in data if name != "latents" and "mask" not in name):
        with pytest.raises(ModelError, match=f"the data has latents without {missing}; give images with captions"):
            scores(model, {name: value for name, value in data.items() if name != missing})


@pytest.mark.parametrize("make", [chroma, z_image])
def test_all_tokens_count_without_a_mask(make):
    model = randomize(make())
    data = latents_for(model)
    everything = {name: torch.ones_like(value) if "mask" in name else value for name, value in data.items()}
    without = {name: value for name, value in data.items() if "mask" not in name}
    assert scores(model, without) == scores(model, everything) != scores(model, data)


def test_texts_of_different_lengths_are_refused_by_name():
    rows = rows_of(text_data())
    rows[3]["encoder_hidden_states"] = torch.randn(7, 12)
    message = r"encoder_hidden_states has samples of shapes \(5, 12\) and \(7, 12\); give one shape"
    with pytest.raises(DataError, match=message):
        secateur.rank(unet_condition(), data=rows, criterion="taylor", scoring=SCORING, process=SCHEDULER, device="cpu")
