"""Refitting a layer whose outputs are gated before they are added to a residual stream.

With a gate g for every image and channel (adaLN: Peebles & Xie 2023, section 3.2), channel c of the stream receives
g_c (w_c' h + b_c). If e_c is the error of the stream there, the best change d_c of channel c solves its own system,

    (A_c + ridge m_c I0) d_c = B_c,    A_c = E[g_c^2 h h'],  B_c = E[g_c h e_c],

with a column of ones in h for the bias. A channel whose gate is zero keeps its weights.

I images of R rows each, K columns (the ones last where there is a bias), M output channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..base.devices import in_float64
from .least_squares import least_ridge, mean_square, solve

EXACT_BYTES = 2**30  # of the products h h' of every image; above it, conjugate gradients are used
AT_ONCE_BYTES = 2**28  # of the A_c in memory at once
TOLERANCE = 1e-4  # of conjugate gradients, |residual| / |B|: the error then equals the exact one's to six digits
STEPS = 200  # most steps of conjugate gradients
EXPECTED_STEPS = 30
LEAST_RIDGE = 1e-8  # of the preconditioner, which must be positive definite also where inputs depend on each other

Total = Callable[[Tensor], Tensor]  # the sum of a tensor over all processes


def alone(tensor: Tensor) -> Tensor:
    """The sum over one process: the tensor itself."""
    return tensor


def gated_change(
    x_IRK: Tensor, gate_IM: Tensor, error_IRM: Tensor, ridge: float, bias: bool, total: Total = alone
) -> Tensor:
    """The change (K, M) of the weights: by exact solution if systems are small, else by conjugate gradients."""
    images, rows, columns = x_IRK.shape
    everywhere, rows_of_all = map(int, total(x_IRK.new_tensor([images, images * rows])))  # so that all choose alike
    ridge = max(ridge, least_ridge(x_IRK.dtype, columns))
    is_exact = exact_is_better(everywhere, rows_of_all, columns, gate_IM.shape[1])
    chosen = exact_change if is_exact else conjugate_change
    return chosen(x_IRK, gate_IM, error_IRM, ridge, bias, total)


def exact_flops(images: int, columns: int, outputs: int) -> float:
    """Operations of the exact solution; those in float64 count twice."""
    return 2 * outputs * columns**2 * (images + columns / 3)


def conjugate_flops(rows: int, columns: int, outputs: int) -> float:
    """Operations of conjugate gradients with the expected number of steps."""
    return 4 * EXPECTED_STEPS * rows * columns * outputs


def exact_is_better(images: int, rows: int, columns: int, outputs: int) -> bool:
    """Whether the exact solution takes fewer operations than conjugate gradients on all rows, and fits in memory."""
    fits = 4 * images * columns**2 <= EXACT_BYTES
    return fits and exact_flops(images, columns, outputs) <= conjugate_flops(rows, columns, outputs)


def exact_change(
    x_IRK: Tensor, gate_IM: Tensor, error_IRM: Tensor, ridge: float, bias: bool, total: Total = alone
) -> Tensor:
    """The change (K, M) by a factorization for each channel; sums in the dtype of the rows, solved in float64."""
    images, _, columns = x_IRK.shape
    grams = (x_IRK.mT @ x_IRK).reshape(images, -1)
    cross = total(in_float64(_cross(x_IRK, gate_IM, error_IRM)))

    def solved(channels: Tensor) -> Tensor:
        squares = gate_IM[:, channels].square()
        systems = total(in_float64(squares.T @ grams).reshape(-1, columns, columns))
        pull = ridge * mean_square(systems.diagonal(dim1=1, dim2=2), bias)
        systems.diagonal(dim1=1, dim2=2)[:, : columns - bias] += pull[:, None]
        changes = [
            solve(A, b[:, None])[:, 0] if A.any() else torch.zeros_like(b)
            for A, b in zip(systems, cross[:, channels].T, strict=True)
        ]
        return torch.stack(changes, dim=1)

    at_once = max(1, AT_ONCE_BYTES // (8 * columns**2))
    return torch.cat([solved(channels) for channels in torch.arange(gate_IM.shape[1]).split(at_once)], dim=1)


def conjugate_change(
    x_IRK: Tensor, gate_IM: Tensor, error_IRM: Tensor, ridge: float, bias: bool, total: Total = alone
) -> Tensor:
    """The change (K, M) by conjugate gradients on all channels at once, without forming their systems.

    Preconditioned by one system for all channels, scaled for each; it equals theirs if gates vary little.
    """
    columns = x_IRK.shape[2]
    squares = gate_IM.square()
    power = total(squares.sum(0))
    live = power > 0
    shares = (squares / power.where(live, power.new_ones(()))).sum(1)  # of the images in all channels
    shared = in_float64(total((x_IRK * shares[:, None, None]).flatten(0, 1).T @ x_IRK.flatten(0, 1)))
    diagonals = total(squares.T @ x_IRK.square().sum(1))  # of the A_c, (M, K)
    pull = ridge * mean_square(diagonals, bias)
    pulled = torch.ones(columns, 1, dtype=x_IRK.dtype, device=x_IRK.device)
    pulled[columns - bias :] = 0
    level = mean_square(shared.diagonal(), bias)
    shared.diagonal()[: columns - bias] += max(ridge, LEAST_RIDGE) * level.where(level > 0, level.new_ones(()))
    factor = torch.linalg.cholesky(shared)
    scale = mean_square(diagonals, bias) / mean_square(shared.diagonal(), bias).to(diagonals)

    def system(change_KM: Tensor) -> Tensor:
        outputs = x_IRK @ change_KM * squares[:, None]
        return total(torch.einsum("irk,irm->km", x_IRK, outputs)) + pull * pulled * change_KM

    def preconditioned(residual_KM: Tensor) -> Tensor:
        solved = torch.cholesky_solve(in_float64(residual_KM), factor).to(residual_KM)
        return solved / scale.where(live & (scale > 0), scale.new_ones(()))

    cross = total(_cross(x_IRK, gate_IM, error_IRM)) * live
    return in_float64(conjugate_gradients(system, preconditioned, cross))


def conjugate_gradients(
    system: Callable[[Tensor], Tensor], preconditioned: Callable[[Tensor], Tensor], right_KM: Tensor
) -> Tensor:
    """Solve a positive definite system for every column of `right_KM` independently (Hestenes & Stiefel 1952)."""
    solution = torch.zeros_like(right_KM)
    residual, direction = right_KM, preconditioned(right_KM)
    product = (residual * direction).sum(0)
    enough = TOLERANCE * right_KM.norm(dim=0)
    for _ in range(STEPS):
        going = residual.norm(dim=0) > enough
        if not going.any():
            break
        image = system(direction)
        step = _ratio(product, (direction * image).sum(0), going)
        solution = solution + step * direction
        residual = residual - step * image
        corrected = preconditioned(residual)
        before, product = product, (residual * corrected).sum(0)
        direction = corrected + _ratio(product, before, going) * direction
    return solution


def _ratio(numerator_M: Tensor, denominator_M: Tensor, going_M: Tensor) -> Tensor:
    """The quotient; 0 for columns that are solved."""
    return torch.where(going_M, numerator_M / denominator_M.where(going_M, 1.0), 0.0)


def _cross(x_IRK: Tensor, gate_IM: Tensor, error_IRM: Tensor) -> Tensor:
    """Sum of g_c h e_c over rows, (K, M)."""
    return torch.einsum("irk,irm->km", x_IRK, gate_IM[:, None] * error_IRM)
