"""The memory that self-modifying Titans are made of, as one function with a backward pass of its own.

The same numbers as the general path of `AssociativeMemory` for `MLP`, `Huber`, `SelfGenerated` and `DeltaGradientDescent()`, in a
third of its operations. Two things make the difference. Retention of at least 1/2 lets the scan run on the weights divided
by what is left of the block's start, `A_t = prod_{1..t} alpha`, which decay no more (no matrix of decays is formed):

    W_t / A_t = W_{t-1} / A_{t-1} - e_t x_t^T (x_t W_{t-1} / A_{t-1} + delta_t / A_{t-1})          e_t = beta_t / alpha_t

and the gradient is written out by hand.

`..` rows and heads, n tokens of a block, d width, h hidden width. Names: `at_x` is the gradient at x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nestling.memory.fused.backward import backward
from nestling.memory.fused.forward import Outputs, forward
from nestling.memory.fused.given import Given
from nestling.memory.fused.memo import Memo


def write_and_read(
    given: Given, radius: float, general: Callable[..., Outputs], frugal: bool = False
) -> Outputs:
    """Learn `k -> unit(M(v))`, and read with q before each token: `y [.., n, d]` or None, and the new weights.

    radius: the largest norm of a surprise.
    general: the same function of the same arguments in differentiable steps, for derivatives of the gradient.
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
            found = _differentiable(ctx.general, given, slopes)
        else:
            found = backward(given, ctx.radius, outputs, Memo(ctx.frugal, made), slopes[0], slopes[1:])
        return None, None, None, *found


def _differentiable(
    general: Callable[..., Any], given: Given, slopes: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradient as a function of arguments and slopes that can be differentiated again."""
    # as views, since one argument may have been made of another (running weights of those that the chunk began with): the
    # path through it belongs to that one's gradient
    views: Any = (None if x is None else x.view_as(x) for x in given)
    given = Given(*views)
    wanted = [x for x in given if x is not None and x.requires_grad]
    pairs = [(y, slope) for y, slope in zip(general(*given), slopes, strict=True) if y is not None and y.requires_grad]
    outputs, at_outputs = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, at_outputs, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in given]
