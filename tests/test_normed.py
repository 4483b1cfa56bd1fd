"""Layers whose outputs are normalized before they are added to a stream: closed forms, the optimum, and the norms."""

import pytest
import torch
from torch import Tensor, nn

from secateur.compensation import normed
from secateur.compensation.least_squares import with_ones
from secateur.compensation.normed import normed as by_size
from secateur.compensation.normed import normed_change, norms_behind, scales_only

IMAGES, POSITIONS, FEATURES, OUTPUTS, LOST = 24, 12, 20, 14, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def case(is_redundant: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A layer that lost features: its rows, its output, the gates, and what the stream lacks."""
    h = normal(IMAGES, POSITIONS, FEATURES) @ normal(FEATURES, FEATURES, seed=1)
    if is_redundant:
        h[..., :LOST] = h[..., LOST:] @ normal(FEATURES - LOST, LOST, seed=2)
    weight, gate = normal(FEATURES, OUTPUTS, seed=3), 1 + 0.3 * normal(IMAGES, OUTPUTS, seed=4)
    x = h[..., LOST:]
    output = x @ weight[LOST:]
    return x, output, gate, gate[:, None] * (by_size(h @ weight) - by_size(output))


def by_descent(x: Tensor, output: Tensor, gate: Tensor, error: Tensor, rescale: bool) -> float:
    """The least error that an optimizer finds."""
    wanted = error + gate[:, None] * by_size(output)
    change = torch.zeros(x.shape[2], OUTPUTS, dtype=torch.float64, requires_grad=True)
    factors = torch.ones(OUTPUTS, dtype=torch.float64, requires_grad=rescale)
    optimizer = torch.optim.LBFGS([change, *([factors] if rescale else [])], max_iter=2000, tolerance_change=1e-14)

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = (wanted - factors * gate[:, None] * by_size(output + x @ change)).square().sum()
        found.backward()
        return found

    for _ in range(3):
        optimizer.step(loss)
    return float(loss().detach())


def test_features_that_others_can_express_are_replaced_exactly(monkeypatch):
    monkeypatch.setattr(normed, "STEPS", 60)
    x, output, gate, error = case(is_redundant=True)
    *_, left = normed_change(x, output, gate, error, 0.0, False, rescale=False)
    assert error.square().sum() > 100
    assert left.abs().max() < 1e-6
    *_, left = normed_change(x, output, gate, error, 0.0, False)
    assert left.square().sum() < 2e-3 * error.square().sum()


@pytest.mark.parametrize("rescale", [True, False])
def test_two_steps_come_close_to_the_optimum(rescale):
    x, output, gate, error = case()
    _, factors, left = normed_change(x, output, gate, error, 0.0, False, rescale)
    expected = by_descent(x, output, gate, error, rescale)
    assert left.square().sum() < 1.02 * expected
    assert left.square().sum() < 0.5 * error.square().sum()
    assert torch.equal(factors, torch.ones_like(factors)) != rescale


def test_the_error_that_is_left_is_that_of_the_changed_layer():
    x, output, gate, error = case()
    change, factors, left = normed_change(with_ones(x), output, gate, error, 0.01, True)
    wanted = error + gate[:, None] * by_size(output)
    torch.testing.assert_close(left, wanted - factors * gate[:, None] * by_size(output + with_ones(x) @ change))


def test_the_size_of_the_weights_does_not_matter():
    x, output, gate, error = case()
    change, factors, left = normed_change(x, output, gate, error, 0.01, False)
    larger, same_factors, same = normed_change(x, 8 * output, gate, error, 0.01, False)
    torch.testing.assert_close(larger, 8 * change)
    torch.testing.assert_close((same_factors, same), (factors, left))


def test_what_is_missing_in_every_position_is_added_by_the_norm():
    """An addition that should be twice as large in one channel and half in another."""
    x, output, gate, _ = case()
    factors = torch.ones(OUTPUTS, dtype=torch.float64)
    factors[3], factors[5] = 2, 0.5
    error = gate[:, None] * (factors - 1) * by_size(output)
    *_, left = normed_change(x, output, gate, error, 0.0, False, rescale=False)
    assert left.square().sum() > 0.02 * error.square().sum()
    *_, left = normed_change(x, output, gate, error, 0.0, False)
    assert left.square().sum() < 1e-3 * error.square().sum()


def test_nothing_changes_where_nothing_is_lacking_or_written():
    x, output, gate, error = case()
    change, factors, _ = normed_change(x, output, gate, torch.zeros_like(error), 0.01, False)
    assert not change.any()
    assert torch.equal(factors, torch.ones_like(factors))
    gate[:, 2] = 0
    change, factors, left = normed_change(x, output, gate, error, 0.01, False)
    assert not change[:, 2].any()
    assert factors[2] == 1
    assert left.isfinite().all()
    assert normed_change(0 * x, 0 * output, gate, error, 0.01, False)[2].isfinite().all()


def test_processes_add_their_sums():
    """`total` adds the sums of other processes, so doubled sums give the same refit."""
    alone = normed_change(*case(), 0.01, False)
    torch.testing.assert_close(normed_change(*case(), 0.01, False, total=lambda sums: 2 * sums), alone)


class OnePlus(nn.RMSNorm):
    """Multiplies by 1 + weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x * x.square().mean(-1, keepdim=True).rsqrt()


def test_norms_whose_weights_only_scale_are_told_from_others():
    like = torch.zeros(2, 5, 8)
    scaled = nn.RMSNorm(8)
    nn.init.normal_(scaled.weight)
    assert scales_only(scaled, like)
    assert scales_only(scaled.half(), like.half())
    for other in (nn.LayerNorm(8), OnePlus(8), nn.RMSNorm(8, elementwise_affine=False), nn.RMSNorm(5), nn.Linear(8, 8)):
        assert not scales_only(other, like)


def test_the_norm_behind_a_layer_is_found():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.third = nn.Linear(4, 4)
            self.before, self.behind, self.shared = nn.RMSNorm(4), nn.RMSNorm(4), nn.RMSNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            added = self.behind(self.one(self.before(x))) + self.other(x)
            return x + added + self.shared(self.third(x)) + self.shared(x)

    block = Block()
    with norms_behind(block, {name: getattr(block, name) for name in ("one", "other", "third")}) as found:
        block(torch.randn(2, 4))
    assert found == {"one": block.behind}
