"""Text models whose latents and conditions are tensors in memory."""

import pytest
import torch
from diffusers import DDPMScheduler

import secateur
from models import unet_condition
from secateur import EvaluationConfig, Recipe, RecoveryConfig, ScoringConfig
from secateur.base.errors import ModelError

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
