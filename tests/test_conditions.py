"""The conditions of a network, beside the noisy sample."""

from typing import ClassVar

import torch
from torch import nn

from models import unet_condition
from secateur.data import Batch
from secateur.data.conditions import sample_conditions
from secateur.models.conditions import arguments, dropped, moved, repeated, rows, without_labels
from secateur.models.predict import predict
from secateur.process.flow import FlowProcess
from secateur.process.sampling import generate

TOLD = {
    "class_labels": torch.tensor([1, 2, 3]),
    "encoder_hidden_states": torch.arange(12.0).view(3, 2, 2),
    "added_cond_kwargs.text_embeds": torch.arange(3.0).view(3, 1),
}
NULL = {"class_labels": torch.tensor(9), "encoder_hidden_states": torch.full((2, 2), -1.0)}


class Told(nn.Module):
    """Predicts the mean of its text embedding, and keeps what it was called with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.bfloat16))

    def forward(self, sample, encoder_hidden_states, timestep, added_cond_kwargs=None, return_dict=True):
        self.seen = {"encoder_hidden_states": encoder_hidden_states, "added_cond_kwargs": added_cond_kwargs}
        return (encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1).expand_as(sample),)


def test_rows_move_together_and_dropped_ones_become_the_null_condition():
    assert rows(TOLD, torch.tensor([2, 0]))["class_labels"].tolist() == [3, 1]
    assert rows(TOLD, slice(1, 2))["encoder_hidden_states"].shape == (1, 2, 2)
    twice = repeated(TOLD, 2)
    assert twice["class_labels"].tolist() == [1, 2, 3, 1, 2, 3]
    assert twice["encoder_hidden_states"].shape == (6, 2, 2)
    found = dropped(TOLD, torch.tensor([False, True, False]), NULL)
    assert found["class_labels"].tolist() == [1, 9, 3]
    assert found["encoder_hidden_states"][1].eq(-1).all()
    assert torch.equal(found["encoder_hidden_states"][0], TOLD["encoder_hidden_states"][0])
    assert found["added_cond_kwargs.text_embeds"] is TOLD["added_cond_kwargs.text_embeds"]
    assert set(moved(without_labels(TOLD), "cpu")) == set(TOLD) - {"class_labels"}


def test_arguments_nest_and_take_the_dtype_of_the_weights():
    found = arguments(TOLD, torch.bfloat16)
    assert found["class_labels"].dtype == torch.int64
    assert found["encoder_hidden_states"].dtype == torch.bfloat16
    assert torch.equal(found["added_cond_kwargs"]["text_embeds"], torch.arange(3.0).view(3, 1).bfloat16())


def test_predictions_are_conditioned_and_guided_by_the_null_condition():
    model, noise = Told(), torch.zeros(3, 1, 2, 2)
    told = without_labels(TOLD)
    output = predict(model, noise, torch.zeros(3), told)
    assert output[:, 0, 0, 0].tolist() == [1.5, 5.5, 9.5]
    assert model.seen["added_cond_kwargs"]["text_embeds"].shape == (3, 1)
    drawn = generate(model, FlowProcess(), noise, told, num_inference_steps=1, guidance_scale=2.0, null=NULL)
    assert drawn[:, 0, 0, 0].tolist() == [-4.0, -12.0, -20.0]  # -(null + 2 (output - null)), null = -1
    assert model.seen["encoder_hidden_states"].eq(-1).all()
    assert model.seen["added_cond_kwargs"]["text_embeds"].flatten().tolist() == [0, 1, 2]


class Captioned:
    """Four images, each with its number as the condition."""

    null: ClassVar = {"encoder_hidden_states": torch.zeros(1, 1)}

    def __len__(self):
        return 4

    def batch(self, indices):
        told = {"encoder_hidden_states": torch.tensor(indices).float().view(-1, 1, 1)}
        return Batch(torch.zeros(len(indices), 1, 8, 8), {**told, "class_labels": torch.zeros(len(indices)).long()})


def test_samples_of_a_model_with_classes_and_text_get_both():
    data = Captioned()
    both, text = (unet_condition(num_class_embeds=classes, sample_size=8) for classes in (3, None))
    found = sample_conditions(both, data, range(6))
    assert found["class_labels"].tolist() == [0, 1, 2, 0, 1, 2]
    told = found["encoder_hidden_states"].flatten().tolist()
    assert told[:2] == told[4:]  # the four images in turns
    assert sorted(told[:4]) == [0, 1, 2, 3]
    assert set(sample_conditions(text, data, range(6))) == {"encoder_hidden_states"}


def test_a_null_condition_beyond_the_range_of_half_precision_stays_finite():
    states, null = torch.ones(2, 3, 4, dtype=torch.float16), torch.full((1, 3, 4), 1e5, dtype=torch.bfloat16)
    found = dropped({"encoder_hidden_states": states}, torch.tensor([True, False]), {"encoder_hidden_states": null})
    assert found["encoder_hidden_states"].isfinite().all()
    assert found["encoder_hidden_states"][0].unique() == null.float().unique()
    assert (found["encoder_hidden_states"][1] == 1).all()
