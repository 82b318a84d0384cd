"""Derivatives of gradients that are written out by hand, by way of the same function in steps that autograd knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable(
    general: Callable[..., Sequence[Tensor | None]], given: Sequence[Tensor | None], slopes: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradient at `given` as a function of it and of the slopes, which can be differentiated again.

    general: the function, of `given`, in differentiable steps. slopes: the gradient at each of its outputs.
    """
    # as views, since one argument may have been made of another (running weights of those that the chunk began with): the
    # path through it belongs to that one's gradient
    views: list[Any] = [None if x is None else x.view_as(x) for x in given]
    wanted = [x for x in views if x is not None and x.requires_grad]
    pairs = [(y, slope) for y, slope in zip(general(*views), slopes, strict=True) if y is not None and y.requires_grad]
    outputs, at_outputs = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, at_outputs, create_graph=True, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in views]
