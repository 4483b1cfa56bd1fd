"""Dropout masks belong to images: how a batch is divided does not change what is learned."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from models import dit, unet
from secateur.process.diffusion import DiffusionProcess
from secateur.process.flow import FlowProcess
from secateur.recovery import RecoveryConfig, recover
from secateur.recovery.dropout import dropout_by_image
from training_runs import images, log, smaller

CONFIG = RecoveryConfig(steps=4, batch_size=8, learning_rate=1e-3, log_every=1, dropout=0.3, grad_norms_every=2)


def passed(network: nn.Module, x: torch.Tensor, places: range, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    with dropout_by_image(network, lambda: places):
        return network(x)


@pytest.mark.parametrize("rows", [1, 3])
def test_parts_of_a_batch_have_the_masks_of_the_whole(rows):
    network, x = nn.Sequential(nn.Dropout(0.25), nn.Dropout(0.25)), torch.randn(8 * rows, 7, 5)
    whole = passed(network, x, range(8))
    parts = [passed(network, part, range(2 * n, 2 * n + 2)) for n, part in enumerate(x.chunk(4))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, passed(network, x, range(8), seed=1))


def test_entries_are_kept_as_often_as_asked_and_scaled():
    layer = nn.Dropout(0.25)
    found = passed(layer, torch.ones(4, 100_000), range(4))
    assert set(found.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    for row in found:
        assert (row > 0).double().mean().item() == pytest.approx(0.75, abs=0.01)
    same = torch.corrcoef(found)  # masks of different images are independent
    assert (same - torch.eye(4)).abs().max() < 0.02


def test_layers_are_left_as_they_were():
    layer, x = nn.Dropout(0.5), torch.ones(2, 50)
    passed(layer, x, range(2))
    assert "forward" not in vars(layer)
    assert torch.equal(passed(layer.eval(), x, range(2)), x)
    assert torch.equal(passed(nn.Dropout(1.0), x, range(2)), torch.zeros_like(x))


@pytest.mark.parametrize("objective", ["denoising", pytest.param("2ndmatch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("model", "process"), [(unet, DiffusionProcess()), (dit, FlowProcess())])
def test_micro_batches_do_not_change_what_is_learned(model, process, objective, tmp_path):
    teacher = {"denoising": None, "2ndmatch": (smaller() if model is dit else unet()).double()}[objective]
    expected = recover(
        model().double(), process, images(), replace(CONFIG, objective=objective), tmp_path / "1", teacher
    )
    config = replace(CONFIG, objective=objective, accumulation=4)
    found = recover(model().double(), process, images(), config, tmp_path / "4", teacher)
    for before, after in zip(log(tmp_path / "1"), log(tmp_path / "4"), strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-10)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-8, atol=1e-10)
