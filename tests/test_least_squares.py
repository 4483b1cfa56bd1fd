"""The closed forms of compensation in float64: what can be compensated is compensated exactly."""

import pytest
import torch
from torch import Tensor

from secateur.compensation import gated
from secateur.compensation.gated import conjugate_change, exact_change, gated_change
from secateur.compensation.least_squares import Sums, refit, with_ones

ROWS, FEATURES, OUTPUTS = 200, 12, 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sums_of(x: Tensor, error: Tensor, target: Tensor, parts: int = 1) -> Sums:
    sums = Sums(x.shape[1], error.shape[1], x.device)
    for rows in zip(*(values.chunk(parts) for values in (x, error, target)), strict=True):
        sums.add(*rows)
    return sums


@pytest.mark.parametrize("bias", [False, True])
def test_inputs_that_the_kept_ones_determine_cost_nothing_to_remove(bias):
    kept = normal(ROWS, FEATURES) + bias
    removed = kept @ normal(FEATURES, 5, seed=1) + 3 * bias
    weight_kept, weight_removed = normal(FEATURES, OUTPUTS, seed=2), normal(5, OUTPUTS, seed=3)
    target = kept @ weight_kept + removed @ weight_removed
    x = with_ones(kept) if bias else kept
    change, left = refit(sums_of(x, target - kept @ weight_kept, target), 1e-15, bias)
    assert left == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(x @ change + kept @ weight_kept, target, atol=1e-10, rtol=0)
    expected = torch.linalg.lstsq(x, target).solution
    weights = torch.cat([weight_kept, weight_kept.new_zeros(1, OUTPUTS)]) if bias else weight_kept
    torch.testing.assert_close(weights + change, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_without_a_ridge_the_error_is_that_of_least_squares(bias):
    x, target, present = normal(ROWS, FEATURES), normal(ROWS, OUTPUTS, seed=1), normal(ROWS, OUTPUTS, seed=2)
    x = with_ones(x) if bias else x
    change, left = refit(sums_of(x, target - present, target), 0.0, bias)
    solution = torch.linalg.lstsq(x, target - present).solution
    torch.testing.assert_close(change, solution, atol=1e-10, rtol=0)
    assert left == pytest.approx((target - present - x @ solution).square().sum().item(), rel=1e-12)


@pytest.mark.parametrize("ridge", [1e-8, 0.01, 10.0])
def test_nothing_lost_changes_nothing(ridge):
    x, target = normal(ROWS, FEATURES), normal(ROWS, OUTPUTS, seed=1)
    change, left = refit(sums_of(with_ones(x), torch.zeros_like(target), target), ridge, True)
    assert left == 0
    assert not change.any()


def test_a_strong_ridge_moves_the_bias_alone():
    """b' = E y - W E x."""
    x, weight = normal(ROWS, FEATURES) + 1, normal(FEATURES, OUTPUTS, seed=1)
    target = normal(ROWS, OUTPUTS, seed=2) + 2
    change, _ = refit(sums_of(with_ones(x), target - x @ weight, target), 1e15, True)
    torch.testing.assert_close(change[:-1], torch.zeros_like(weight), atol=1e-10, rtol=0)
    torch.testing.assert_close(change[-1], target.mean(0) - x.mean(0) @ weight, atol=1e-10, rtol=0)


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
def test_the_refit_is_where_the_objective_is_flat_and_lowest(ridge):
    x, error = with_ones(normal(ROWS, FEATURES)), normal(ROWS, OUTPUTS, seed=1)
    pull = ridge * x[:, :-1].square().sum(0).mean()

    def objective(change: Tensor) -> Tensor:
        return (error - x @ change).square().sum() + pull * change[:-1].square().sum()

    change, left = refit(sums_of(x, error, error), ridge, True)
    gradient = torch.autograd.functional.jacobian(objective, change)
    assert gradient.abs().max() < 1e-9
    assert left == pytest.approx((error - x @ change).square().sum().item(), rel=1e-12)
    assert left <= error.square().sum()


def test_sums_do_not_depend_on_how_rows_are_split():
    x, error = normal(ROWS, 600), normal(ROWS, OUTPUTS, seed=1)
    whole, parts = (refit(sums_of(x, error, error, count), 0.01, False)[0] for count in (1, 8))
    torch.testing.assert_close(whole, parts, atol=1e-12, rtol=0)


def test_an_input_that_is_always_zero_keeps_its_weights():
    x, error = normal(ROWS, FEATURES), normal(ROWS, OUTPUTS, seed=1)
    x[:, 3] = 0
    for ridge in (0.0, 0.01):
        change, _ = refit(sums_of(x, error, error), ridge, False)
        torch.testing.assert_close(change[3], torch.zeros(OUTPUTS, dtype=torch.float64), atol=1e-12, rtol=0)


# Gated.

IMAGES, POSITIONS = 20, 10


@pytest.fixture(autouse=True)
def to_the_last_digits(monkeypatch):
    monkeypatch.setattr(gated, "TOLERANCE", 1e-12)


def gated_case(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    x = with_ones(normal(IMAGES, POSITIONS, FEATURES, seed=seed))
    gate, error = normal(IMAGES, OUTPUTS, seed=seed + 1), normal(IMAGES, POSITIONS, OUTPUTS, seed=seed + 2)
    gate[:, 2] = 0
    return x, gate, error


@pytest.mark.parametrize("solver", [exact_change, conjugate_change])
@pytest.mark.parametrize("ridge", [1e-6, 0.01])
def test_every_gated_channel_is_a_ridge_regression_of_its_own(solver, ridge):
    x, gate, error = gated_case()
    change = solver(x, gate, error, ridge, True)
    for channel in range(OUTPUTS):
        rows = (x * gate[:, None, channel, None]).flatten(0, 1)
        expected, _ = refit(sums_of(rows, error[..., channel].flatten()[:, None], rows[:, :1]), ridge, True)
        torch.testing.assert_close(change[:, channel], expected[:, 0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("solver", [exact_change, conjugate_change])
def test_a_channel_whose_gate_is_zero_keeps_its_weights(solver):
    assert not solver(*gated_case(), 0.01, True)[:, 2].any()


@pytest.mark.parametrize("solver", [exact_change, conjugate_change])
def test_a_gate_of_one_is_the_plain_refit(solver):
    x, gate, error = gated_case()
    change = solver(x, torch.ones_like(gate), error, 0.01, True)
    rows, errors = x.flatten(0, 1), error.flatten(0, 1)
    expected, _ = refit(sums_of(rows, errors, errors), 0.01, True)
    torch.testing.assert_close(change, expected, atol=1e-10, rtol=0)


def test_inputs_that_depend_on_each_other_need_no_ridge():
    x, gate, error = gated_case()
    x[..., 1] = 2 * x[..., 0]
    left = [
        (error - gate[:, None] * (x @ solver(x, gate, error, 0.0, True))).square().sum()
        for solver in (exact_change, conjugate_change)
    ]
    torch.testing.assert_close(*left)


@pytest.mark.parametrize("exact", [True, False])
def test_fewer_rows_than_columns_need_no_ridge_in_float32_either(exact, monkeypatch):
    monkeypatch.setattr(gated, "exact_is_better", lambda *sizes: exact)
    x, gate, error = (values.float() for values in (normal(8, 1, 40), normal(8, 3, seed=1), normal(8, 1, 3, seed=2)))
    change = gated_change(x, gate, error, 0.0, False)
    assert change.abs().max() < 10
    assert (error - gate[:, None] * (x @ change.float())).square().sum() < 1e-3 * error.square().sum()
    plain, _ = refit(sums_of(x[:, 0], error[:, 0], error[:, 0]), 0.0, False)
    assert plain.abs().max() < 10
    assert (error[:, 0] - x[:, 0] @ plain.float()).square().sum() < 1e-3 * error.square().sum()


def test_the_solvers_share_sums_with_other_processes():
    """`total` adds the sums of other processes, so doubled sums give the same refit."""
    x, gate, error = gated_case()
    alone = gated_change(x, gate, error, 0.01, True)
    torch.testing.assert_close(gated_change(x, gate, error, 0.01, True, lambda sums: 2 * sums), alone)
    iterated = conjugate_change(x, gate, error, 0.01, True, lambda sums: 2 * sums)
    torch.testing.assert_close(iterated, alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("solver", [exact_change, conjugate_change])
def test_inputs_that_are_all_zero_change_nothing_but_the_bias(solver):
    x_IRK = torch.zeros(2, 3, 5, dtype=torch.float64)
    x_IRK[..., -1] = 1
    gate_IM = torch.rand(2, 4, dtype=torch.float64) + 0.5
    error_IRM = torch.randn(2, 3, 4, dtype=torch.float64)
    change_KM = solver(x_IRK, gate_IM, error_IRM, 0.01, True)
    assert change_KM[:-1].abs().max() < 1e-12
    torch.testing.assert_close(change_KM, exact_change(x_IRK, gate_IM, error_IRM, 0.01, True))
