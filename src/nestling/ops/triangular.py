"""Unit lower triangular systems, batched, for many small matrices."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def solve_unit_lower(strict: Tensor, right: Tensor) -> Tensor:
    """`(I + N) X = R` for strictly lower triangular `N [.., n, n]`, `R [.., n, m]`; batch dimensions broadcast.

    One inverse serves the solution, both gradients, and every right side that shares the matrix: on small matrices that
    is less than half the time of triangular solves forward and back. What stands on or above N's diagonal is not read.
    """
    return _Solve.apply(strict, right)


def unit_lower_inverse(strict: Tensor) -> Tensor:
    """`(I + N)^-1` for what stands of `[.., n, n]` below the diagonal."""
    identity = _identity(strict.shape[-1], strict.dtype, strict.device).expand_as(strict)
    return torch.linalg.solve_triangular(strict, identity, upper=False, unitriangular=True, left=False)


@lru_cache(maxsize=64)
def _identity(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.eye(size, dtype=dtype, device=device)


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, strict: Tensor, right: Tensor) -> Tensor:
        inverse = unit_lower_inverse(strict)
        solution = inverse @ right
        ctx.save_for_backward(strict, right, inverse, solution)
        return solution

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """`dR = A^T dX` and `dN = -dR X^T` below the diagonal, for the inverse `A`."""
        strict, right, inverse, solution = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: both as functions of the inputs again
            inverse = unit_lower_inverse(strict.tril(-1))
            solution = inverse @ right
        at_right = inverse.mT @ gradients[0]
        at_strict = strictly_lower((at_right @ solution.mT).sum_to_size(inverse.shape), -1.0)
        return at_strict, at_right.sum_to_size(right.shape)


def strictly_lower(x: Tensor, factor: float = 1.0) -> Tensor:
    """`factor x` below the diagonal of `[.., n, n]`, 0 elsewhere, for finite x: a product, which is faster than a cut."""
    return x * torch.full(x.shape[-2:], factor, dtype=x.dtype, device=x.device).tril(-1)
