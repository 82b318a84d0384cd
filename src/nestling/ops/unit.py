"""Vectors of norm one, and of bounded norm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SMALLEST = 1e-6  # norm below which a direction means nothing


def unit(x: Tensor) -> Tensor:
    """`x` at Euclidean norm 1 over its last dimension; where its norm is below 1e-6, `x / 1e-6`.

    As `torch.nn.functional.normalize`, with a backward pass of its own in less than half the time.
    """
    return _Scaled.apply(x, SMALLEST, 1.0)


def bounded(x: Tensor, radius: float) -> Tensor:
    """`x` where its norm over the last dimension is at most `radius`, else brought to that norm."""
    return _Scaled.apply(x, radius, radius)


def scale_to(x: Tensor, floor: float, radius: float) -> Tensor:
    """`radius / max(|x|, floor)`, `[.., 1]`."""
    inverse = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(floor).reciprocal()
    return inverse if radius == 1 else inverse * radius


def scaled_backward(x: Tensor, scale: Tensor, gradient: Tensor, floor: float, radius: float) -> Tensor:
    """The gradient at x of `radius x / max(|x|, floor)`: `s (dy - x <x, dy> / |x|^2)` for the scale s, below the floor `s dy`.

    scale: `scale_to(x, floor, radius)`.
    """
    share, outside = scale if radius == 1 else scale / radius, scale < radius / floor
    along = (x * gradient).sum(-1, keepdim=True) * share * share * scale * outside  # in an order that does not overflow
    return (gradient * scale).addcmul_(x, along, value=-1)


def unit_backward(y: Tensor, scale: Tensor, gradient: Tensor) -> Tensor:
    """`scaled_backward` of `y = unit(x)` for who has y: `s (dy - y <y, dy>)`. scale: `scale_to(x, SMALLEST, 1.0)`."""
    along = (y * gradient).sum(-1, keepdim=True) * (scale < 1 / SMALLEST)
    return torch.addcmul(gradient, y, along, value=-1) * scale


class _Scaled(torch.autograd.Function):
    """`radius x / max(|x|, floor)`: only x is kept, and the gradient can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, floor: float, radius: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.floor, ctx.radius = floor, radius
        return x * scale_to(x, floor, radius)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        scale = scale_to(x, ctx.floor, ctx.radius)
        return scaled_backward(x, scale, gradients[0], ctx.floor, ctx.radius), None, None
