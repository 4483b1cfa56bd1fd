"""Refitting one layer to its target output, in closed form.

A layer y~ = W x~ + b reads an input x~ that lost features. Its best new weights are those of channel pruning (He, Zhang
& Sun 2017, arXiv 1707.06168, equation 4), with a ridge that pulls them towards the weights after the cut:

    min over W', b' of  E||y - W' x~ - b'||^2 + ridge m ||W' - W||^2,    m the mean of E[x~_k^2] over the features k.

Solved for the change D = W' - W, which is exactly zero if nothing was lost, this is

    (A + ridge m I0) D = B,    A = E[x~ x~'],  B = E[x~ (y - y~)'],

with a column of ones in x~ for the bias, and I0 the identity without the entry of that column.

N rows, K columns (input features, with the column of ones last where there is a bias), M outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.devices import in_float64, where_float64

PANEL = 256  # columns; the symmetric half of A is skipped in blocks of this size


class Sums:
    """Sums over rows that determine the refit of one layer; they can be added over batches and processes.

    Products of rows are computed in the rows' dtype, at least float32, and summed in float64.

    Attributes:
        inputs: sum of x x', (K, K), its upper triangle.
        cross: sum of x e', (K, M), e the error y - y~.
        scalars: number of rows, sum of |e|^2, and sum of |y|^2.
        dtype: of the products.
    """

    def __init__(self, columns: int, outputs: int, device: torch.device) -> None:
        device = where_float64(device)
        self.inputs = torch.zeros(columns, columns, dtype=torch.float64, device=device)
        self.cross = torch.zeros(columns, outputs, dtype=torch.float64, device=device)
        self.scalars = torch.zeros(3, dtype=torch.float64, device=device)
        self.dtype = torch.float64

    def add(self, x_NK: Tensor, error_NM: Tensor, target_NM: Tensor) -> None:
        """Add rows."""
        self.dtype = x_NK.dtype
        for start in range(0, x_NK.shape[1], PANEL):
            panel = x_NK[:, start : start + PANEL]
            self.inputs[start : start + PANEL, start:] += (panel.T @ x_NK[:, start:]).to(self.inputs)
        self.cross += (x_NK.T @ error_NM).to(self.cross)
        squares = [in_float64(values).square().sum() for values in (error_NM, target_NM)]
        self.scalars += torch.stack([squares[0].new_tensor(len(x_NK)), *squares])

    @property
    def rows(self) -> int:
        return int(self.scalars[0])

    @property
    def error(self) -> float:
        """Sum of |e|^2."""
        return float(self.scalars[1])

    @property
    def target(self) -> float:
        """Sum of |y|^2."""
        return float(self.scalars[2])


def with_ones(x_NK: Tensor) -> Tensor:
    """x with a column of ones for the bias, (..., K + 1)."""
    return torch.cat([x_NK, x_NK.new_ones(*x_NK.shape[:-1], 1)], dim=-1)


def refit(sums: Sums, ridge: float, bias: bool) -> tuple[Tensor, float]:
    """The change D (K, M) of the weights, the bias's row last, and the remaining sum of |e|^2.

    Consumes `sums.inputs`, which may be the largest tensor of all.
    """
    features = len(sums.inputs) - bias
    pull = max(ridge, least_ridge(sums.dtype, features)) * mean_square(sums.inputs.diagonal(), bias)
    _mirror(sums.inputs)
    sums.inputs.diagonal()[:features] += pull
    change = solve(sums.inputs, sums.cross)
    # By the normal equations, tr(D'AD) is tr(D'B) less the ridge's part.
    left = sums.error - (change * sums.cross).sum() - pull * change[:features].square().sum()
    return change, max(float(left), 0.0)


def least_ridge(dtype: torch.dtype, columns: int) -> float:
    """The ridge that outweighs the rounding of sums of products in `dtype`, which would otherwise be fitted where there
    are fewer rows than columns."""
    return columns * torch.finfo(dtype).eps


def mean_square(diagonal_K: Tensor, bias: bool) -> Tensor:
    """m: the mean of the diagonal of A over the features, without the column of ones."""
    return diagonal_K[..., : diagonal_K.shape[-1] - bias].mean(-1)


def solve(A_KK: Tensor, B_KM: Tensor) -> Tensor:
    """A^-1 B for a symmetric positive definite A, or the minimum-norm least-squares solution if A is singular."""
    factor, failed = torch.linalg.cholesky_ex(A_KK)
    if failed == 0:
        return torch.cholesky_solve(B_KM, factor)
    return torch.linalg.pinv(A_KK, hermitian=True) @ B_KM


def _mirror(A_KK: Tensor) -> None:
    """Copy the upper triangle onto the lower, in place."""
    for start in range(0, len(A_KK), PANEL):
        block = A_KK[start : start + PANEL, start : start + PANEL]
        block.copy_(block.triu() + block.triu(1).T)
        A_KK[start + PANEL :, start : start + PANEL] = A_KK[start : start + PANEL, start + PANEL :].T
