"""Vectors of norm one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-6  # norm below which a direction means nothing


def unit(x: Tensor) -> Tensor:
    """`x` at Euclidean norm 1 over its last dimension; where its norm is below 1e-6, `x / 1e-6`.

    As `torch.nn.functional.normalize`, with a backward pass of its own in less than half the time.
    """
    return _Unit.apply(x)


def _inverse_norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(SMALLEST).reciprocal()


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        inverse = _inverse_norm(x)
        ctx.save_for_backward(x, inverse)
        return x * inverse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """`dx = (dy - y <y, dy>) / |x|`; near zero, where the norm is a constant, `dy / 1e-6`."""
        (gradient,), (x, inverse) = gradients, ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: as a function of the input again
            inverse = _inverse_norm(x)
        y = x * inverse
        along = (y * gradient).sum(-1, keepdim=True) * (inverse < 1 / SMALLEST)
        return (gradient - y * along) * inverse
