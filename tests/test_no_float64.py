"""A device without float64: such computations are done on the CPU, with the same result."""

import pytest
import torch
from torch import nn

from no_float64 import DEVICE, Elsewhere, Factories
from secateur.base import devices
from secateur.compensation.gated import conjugate_change, exact_change
from secateur.compensation.least_squares import Sums, refit
from secateur.criteria.reconstruction import Reader
from secateur.criteria.reductions import entry_sums
from secateur.evaluation.metrics.consistency import mse, ssim


@pytest.fixture(autouse=True)
def device(monkeypatch):
    monkeypatch.setattr(devices, "WITHOUT_FLOAT64", (DEVICE.type,))


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def there(*values: torch.Tensor) -> list[torch.Tensor]:
    return [Elsewhere(value) for value in values]


def test_the_stand_in_refuses_what_the_device_does():
    (x,) = there(rows(3, 4))
    assert x.device == DEVICE
    assert torch.equal((x @ x.T).cpu(), rows(3, 4) @ rows(3, 4).T)
    with pytest.raises(TypeError, match="float64"):
        x.double()
    with pytest.raises(RuntimeError, match="same device"):
        x + rows(3, 4)
    with Factories(), pytest.raises(TypeError, match="float64"):
        torch.zeros(3, dtype=torch.float64, device=DEVICE)


def test_refits_are_solved_on_the_cpu():
    x, error, target = rows(40, 6), rows(40, 3, seed=1), rows(40, 3, seed=2)
    results = []
    for values in ((x, error, target), there(x, error, target)):
        with Factories():
            sums = Sums(6, 3, values[0].device)
            sums.add(*values)
            results.append(refit(sums, 1e-3, bias=False))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("solve", [exact_change, conjugate_change])
def test_refits_behind_gates_are_solved_on_the_cpu(solve):
    x, gate, error = rows(5, 7, 4), rows(5, 3, seed=1), rows(5, 7, 3, seed=2)
    with Factories():
        found = solve(*there(x, gate, error), 1e-3, False)
    torch.testing.assert_close(found.cpu().double(), solve(x, gate, error, 1e-3, False).double(), rtol=1e-5, atol=1e-6)


def test_scores_and_metrics_are_summed_on_the_cpu():
    x, y = rows(2, 3, 16, 16), rows(2, 3, 16, 16, seed=1)
    with Factories():
        assert torch.equal(mse(*there(x, y)), mse(x, y))
        torch.testing.assert_close(ssim(*there(x, y)), ssim(x, y))
        (found,) = entry_sums("w", there(x)[0], [1]).values()
    assert torch.equal(found, x.double().sum((0, 2, 3)))


def test_the_rise_of_a_reconstruction_is_found_on_the_cpu():
    torch.manual_seed(0)
    layer, inputs, units = nn.Linear(6, 3), rows(50, 6), torch.arange(6).reshape(3, 2)
    outputs = layer(inputs).detach()
    expected = Reader(layer, 0)
    expected.add(inputs, outputs)
    away = nn.Linear(6, 3)
    away.weight, away.bias = (nn.Parameter(each) for each in there(layer.weight.detach(), layer.bias.detach()))
    with Factories():
        found = Reader(away, 0)
        found.add(*there(inputs, outputs))
        assert torch.equal(found.rises(units, 1e-3), expected.rises(units, 1e-3))
