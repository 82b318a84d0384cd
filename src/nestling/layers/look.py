"""What memories are read at, and what they answer: vectors of norm one, each made in one function with its own gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.ops.differentiable import differentiable
from nestling.ops.silu import slope_of
from nestling.ops.unit import SMALLEST, scale_to, unit, unit_backward


def unit_heads(x: Tensor, heads: int) -> Tensor:
    """`unit(silu(x))` for each head: `[.., n, D]` to `[.., H, n, d]`."""
    return _UnitHeads.apply(x, heads)


class _UnitHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int) -> Tensor:
        gate = torch.sigmoid(x)
        bent = _split(x * gate, heads)
        y = torch.empty_like(bent, memory_format=torch.contiguous_format)  # heads outside, as products want them
        scale = scale_to(bent, SMALLEST, 1.0)
        torch.mul(bent, scale, out=y)
        ctx.save_for_backward(x, gate, y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        x, gate, y, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return differentiable(partial(_heads, heads=y.shape[-3]), (x,), gradients)[0], None
        at_bent = unit_backward(y, scale, gradients[0])
        return slope_of(gate, x * gate).mul_(at_bent.transpose(-2, -3).flatten(-2)), None


def _heads(x: Tensor, heads: int) -> tuple[Tensor]:
    return (unit(_split(F.silu(x), heads)),)


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
        gate = torch.sigmoid(z)
        a = z.mul_(gate)
        said = torch.baddbmm(flat_x, a, flat_down)
        scale = scale_to(said, SMALLEST, 1.0)
        y = said * scale
        ctx.save_for_backward(x, up, down, gate, a, y, scale)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, up, down, gate, a, y, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            return tuple(differentiable(_answers, (x, up, down), gradients))
        at_said = unit_backward(y, scale, gradients[0].flatten(0, -3))
        flat_x, flat_up, flat_down = (t.flatten(0, -3) for t in (x, up, down))
        at_down = torch.bmm(a.mT, at_said)
        at_z = torch.bmm(at_said, flat_down.mT).mul_(slope_of(gate, a))
        at_up = torch.bmm(flat_x.mT, at_z)
        at_x = at_said.baddbmm_(at_z, flat_up.mT)
        return at_x.view(x.shape), at_up.view(up.shape), at_down.view(down.shape)


def _answers(x: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor]:
    return (unit(x + F.silu(x @ up) @ down),)
