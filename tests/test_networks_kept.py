"""A compression keeps no network on the device that the present stage does not need."""

import gc

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

import secateur
from models import unet
from secateur.runs import stages
from secateur.runs.teaching import off_the_device

IMAGES = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def networks():
    gc.collect()
    return {id(found): found for found in gc.get_objects() if issubclass(type(found), UNet2DModel)}


@pytest.mark.slow
@pytest.mark.parametrize(("objective", "teaches"), [("denoising", False), ("distillation", True)])
def test_a_recovery_begins_with_the_student_and_the_teacher_that_is_asked(tmp_path, monkeypatch, objective, teaches):
    dense, whole = unet(), stages.recover
    before, moved, counted = set(networks()), [], []

    def counting(model, *arguments, **options):
        counted.append([found for key, found in networks().items() if key not in before])
        assert counted[-1] == [model]
        return whole(model, *arguments, **options)

    def to(self, *arguments, **options):
        if self is dense:
            moved.append((bool(counted), arguments))
        return nn.Module.to(self, *arguments, **options)

    monkeypatch.setattr(stages, "recover", counting)
    monkeypatch.setattr(UNet2DModel, "to", to)
    secateur.compress(
        dense,
        target="macs=60%",
        data=IMAGES,
        process="ddpm",
        recipe="magnitude",
        objective=objective,
        recovery=secateur.RecoveryConfig(steps=1, batch_size=4, grad_norms_every=0),
        evaluation=secateur.EvaluationConfig(metrics=("loss",), num_images=4),
        out=tmp_path / "run",
    )
    counted.clear()
    assert ((False, ("cpu",)) in moved) is not teaches


def test_what_was_movedoff_the_device_returns():
    places = []

    class Recorded(nn.Linear):
        def to(self, place):
            places.append(str(place))
            return self

    with pytest.raises(RuntimeError), off_the_device(Recorded(1, 1), when=True):
        raise RuntimeError
    assert places == ["cpu", "cpu"]  # away, and back to where it was
