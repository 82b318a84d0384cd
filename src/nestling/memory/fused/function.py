"""The memory as one function that autograd knows, with the backward pass beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nestling.memory.fused.backward import backward
from nestling.memory.fused.forward import Outputs, forward
from nestling.memory.fused.given import Given
from nestling.memory.fused.memo import Memo
from nestling.ops.differentiable import differentiable


def write_and_read(given: Given, radius: float, general: Callable[..., Outputs], frugal: bool = False) -> Outputs:
    """Learn `k -> unit(M(v))`, and read with q before each token: `y [.., n, d]` or None, and the new weights.

    radius: the largest norm of a surprise.
    general: the same function of the same arguments in differentiable steps, for derivatives of the gradient.
    frugal: less is kept for the backward pass, which makes it again: a sixth more time for half of the memory.
    """
    return _Fused.apply(radius, general, frugal, *given)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, radius: float, general: Callable[..., Any], frugal: bool, *arguments: Any) -> Outputs:
        memo = Memo(frugal)
        outputs = forward(Given(*arguments), radius, memo)
        ctx.radius, ctx.general, ctx.frugal = radius, general, frugal
        ctx.save_for_backward(*arguments, *outputs, *memo.made)
        return outputs

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[Any, ...]:
        size = len(Given._fields)
        tensors = ctx.saved_tensors  # once: a checkpoint does not give them twice
        given, outputs, made = Given(*tensors[:size]), tensors[size : size + 3], tensors[size + 3 :]
        if torch.is_grad_enabled():  # a second derivative is wanted
            found = differentiable(ctx.general, given, slopes)
        else:
            found = backward(given, ctx.radius, outputs, Memo(ctx.frugal, made), slopes[0], slopes[1:])
        return None, None, None, *found
