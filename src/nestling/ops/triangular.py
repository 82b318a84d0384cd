"""Unit lower triangular systems, batched, for many small matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def solve_unit_lower(strict: Tensor, right: Tensor) -> Tensor:
    """`(I + N) X = R` for strictly lower triangular `N [.., n, n]`, `R [.., n, m]`; batch dimensions broadcast.

    One inverse serves the solution, both gradients, and every right side that shares the matrix: on small matrices that
    is less than half the time of triangular solves forward and back. What stands on or above N's diagonal is not read.
    """
    return _Solve.apply(strict, right)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, strict: Tensor, right: Tensor) -> Tensor:
        identity = torch.eye(strict.shape[-1], dtype=strict.dtype, device=strict.device).expand_as(strict)
        inverse = torch.linalg.solve_triangular(strict, identity, upper=False, unitriangular=True)
        solution = inverse @ right
        ctx.save_for_backward(strict, right, inverse, solution)
        return solution

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """`dR = A^T dX` and `dN = -dR X^T` below the diagonal, for the inverse `A`."""
        strict, right, inverse, solution = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: both as functions of the inputs again
            identity = torch.eye(strict.shape[-1], dtype=strict.dtype, device=strict.device).expand_as(strict)
            inverse = torch.linalg.solve_triangular(strict.tril(-1), identity, upper=False, unitriangular=True)
            solution = inverse @ right
        at_right = inverse.mT @ gradients[0]
        at_strict = (at_right @ solution.mT).sum_to_size(inverse.shape).neg().tril(-1)
        return at_strict, at_right.sum_to_size(right.shape)
