"""What memories are read at, and what they answer: vectors of norm one, each made in one function with its own gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.ops.differentiable import differentiable
from nestling.ops.silu import through_silu
from nestling.ops.unit import SMALLEST, scale_to, scaled_backward, unit


def unit_heads(x: Tensor, heads: int) -> Tensor:
    """`unit(silu(x))` for each head: `[.., n, D]` to `[.., H, n, d]`."""
    return _UnitHeads.apply(x, heads)


class _UnitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.heads = heads
        bent = _split(F.silu(x), heads)
        y = torch.empty_like(bent, memory_format=torch.contiguous_format)  # heads outside, as products want them
        return torch.mul(bent, scale_to(bent, SMALLEST, 1.0), out=y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        bent = _split(F.silu(x), ctx.heads)
        at_bent = scaled_backward(bent, scale_to(bent, SMALLEST, 1.0), gradients[0], SMALLEST, 1.0)
        return through_silu(at_bent.transpose(-2, -3).flatten(-2), x), None


def _split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def unit_answers(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """`unit(x + silu(x W_up) W_down)`, `x [.., n, d]`, `up [.., d, h]`, `down [.., h, d]` of the same `..`."""
    return _UnitAnswers.apply(x, up, down)


class _UnitAnswers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        flat_x, flat_up, flat_down = (t.flatten(0, -3) for t in (x, up, down))
        z = torch.bmm(flat_x, flat_up)
        said = torch.baddbmm(flat_x, F.silu(z), flat_down)
        scale = scale_to(said, SMALLEST, 1.0)
        ctx.save_for_backward(x, up, down, z, said, scale)
        return (said * scale).view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, z, said, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return tuple(differentiable(_answers, (x, up, down), gradients))
        at_said = scaled_backward(said, scale, gradients[0].flatten(0, -3), SMALLEST, 1.0)
        flat_x, flat_up, flat_down = (t.flatten(0, -3) for t in (x, up, down))
        at_down = torch.bmm(F.silu(z).mT, at_said)
        at_z = through_silu(torch.bmm(at_said, flat_down.mT), z)
        at_up = torch.bmm(flat_x.mT, at_z)
        at_x = at_said.baddbmm_(at_z, flat_up.mT)
        return at_x.view(x.shape), at_up.view(up.shape), at_down.view(down.shape)


def _answers(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor]:
    return (unit(x + F.silu(x @ up) @ down),)
