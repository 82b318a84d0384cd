"""Products of gates over every stretch of a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def products_between(gate: Tensor) -> Tensor:
    """`P[t, s] = prod_{r=s+1..t} gate_r`, `[.., n + 1, n + 1]` for `gate [.., n]`: 1 on the diagonal, 0 above it.

    Token r is row and column r; row and column 0 are the start. There is no logarithm, and the gradient divides by
    nothing and cancels nothing: both keep all their digits for gates near 0, and at 0.
    """
    return _Products.apply(gate)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor) -> Tensor:
        size = gate.shape[-1] + 1
        gate = torch.cat([gate.new_ones(*gate.shape[:-1], 1), gate], dim=-1)
        later = torch.ones(size, size, dtype=torch.bool, device=gate.device).triu(1)  # [s, t]
        between = torch.where(later, gate[..., None, :], 1.0).cumprod(-1).triu().mT
        ctx.save_for_backward(between)
        return between

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """`dgate_r = sum_{s < r <= t} P[t, r] dP[t, s] P[r - 1, s]`."""
        (between,) = ctx.saved_tensors
        at = between[..., 1:].mT @ gradients[0]  # [r, s]
        return (at * between[..., :-1, :]).sum(-1)
