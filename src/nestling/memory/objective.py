"""What a memory is trained to do, token by token. A target is a constant here; the outer gradient flows through it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import grad, vmap

from nestling.ops.unit import bounded


@runtime_checkable
class Objective(Protocol):
    """An objective with its slope in closed form."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each token, `[..]` for `[.., d]`."""
        ...

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss's gradient at the output."""
        ...


@dataclass(frozen=True)
class DotProduct:
    """`-<o, v>`: the Hebbian objective (Eq. 64)."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each token, `[..]` for `[.., d]`."""
        return -(output * target).sum(-1)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss's gradient at the output."""
        return (-target).expand_as(output)


@dataclass(frozen=True)
class L2:
    """`1/2 |o - v|^2`: regression, which gives the delta rule (Eq. 65)."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each token, `[..]` for `[.., d]`."""
        return 0.5 * (output - target).square().sum(-1)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss's gradient at the output."""
        return output - target


@dataclass(frozen=True)
class Huber:
    """`1/2 |e|^2` for an error `e = o - v` within `delta`, `delta |e| - 1/2 delta^2` beyond (Yaad, arXiv 2504.13173).

    The surprise is the error, brought to norm `delta` where it is longer: no token writes more than a bounded step. A
    memory that answers a key with at most norm 1 never leaves the quadratic part for unit targets when `delta` is 2.
    """

    delta: float = 2.0

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta={self.delta} must be above 0: it is the largest norm of a surprise")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each token, `[..]` for `[.., d]`."""
        square = (output - target).square().sum(-1)
        inside = square <= self.delta**2
        beyond = torch.where(inside, 1.0, square).sqrt()  # the root has no gradient at 0
        return torch.where(inside, 0.5 * square, self.delta * (beyond - 0.5 * self.delta))

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss's gradient at the output."""
        return bounded(output - target, self.delta)


@dataclass(frozen=True)
class Lp:
    """`sum |e|^p / p` for an error `e = o - v` (Moneta, arXiv 2504.13173); `p=2` is `L2`, 1 the sum of absolute errors.

    The surprise is `sign(e) |e|^(p-1)`. For `p` below 2 its slope, through which the outer gradient flows, has no bound at
    `e = 0`: there, where `|e|` is below `floor`, the loss is quadratic and the surprise linear, `e floor^(p-2)`, so that the slope
    is at most `floor^(p-2)`.

    p: at least 1, finite. floor: above 0; of no consequence from `p=2` on.
    """

    p: float
    floor: float = 1e-3

    def __post_init__(self) -> None:
        if not 1 <= self.p < math.inf:
            raise ValueError(f"p={self.p} must be at least 1, and finite: below 1, |e|^p pushes hardest where e is 0")
        if not self.floor > 0:
            raise ValueError(f"floor={self.floor} must be above 0: the error below which the surprise is linear")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each token, `[..]` for `[.., d]`."""
        error = output - target
        floor, inside, size = self._beyond(error)
        level = floor**self.p * (1 / self.p - 0.5)  # no step at the floor
        quadratic = 0.5 * floor ** (self.p - 2) * error.square() + level
        return torch.where(inside, quadratic, size**self.p / self.p).sum(-1)

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss's gradient at the output."""
        error = output - target
        floor, inside, size = self._beyond(error)
        return torch.where(inside, error * floor ** (self.p - 2), error.sign() * size ** (self.p - 1))

    def _beyond(self, error: Tensor) -> tuple[float, Tensor, Tensor]:
        """Up to where the loss is quadratic, which errors are within, and the size of those beyond (1 within)."""
        floor = self.floor if self.p < 2 else 0.0
        inside = error.abs() <= floor
        return floor, inside, torch.where(inside, 1.0, error.abs())  # a power has no slope at 0


@dataclass(frozen=True)
class Function:
    """An objective of a user's own, `function(output, target)`; its surprise is made by `torch.func`. See `as_objective`."""

    function: Callable[[Tensor, Tensor], Tensor]

    def __repr__(self) -> str:
        return f"Function({getattr(self.function, '__qualname__', type(self.function).__name__)})"

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of each token, `[..]` for `[.., d]`."""
        return self._each(self._of_one, output, target).reshape(output.shape[:-1])

    def surprise(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss's gradient at the output."""
        return self._each(grad(self._of_one), output, target).reshape(output.shape)

    def _of_one(self, output: Tensor, target: Tensor) -> Tensor:
        loss = self.function(output, target)
        if loss.dim():
            raise ValueError(
                f"objective={self.function!r} must return one number for a token's output and target, [d] each; got shape "
                f"{tuple(loss.shape)}: sum over the last dimension"
            )
        return loss

    @staticmethod
    def _each(function: Callable[..., Any], output: Tensor, target: Tensor) -> Tensor:
        """Token by token, so that none can see another, whatever the function does."""
        rows = (x.expand_as(output).reshape(-1, x.shape[-1]) for x in (output, target))
        return vmap(function)(*rows)


def as_objective(objective: Objective | Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """What has `loss` and `surprise` as it is; a function `f(output, target) -> loss` as an objective.

    The function is given the output and the target of one token, `[d]` each, and returns a number; `torch.func` maps it over all
    others and makes the surprise, which is differentiable again. So `lambda o, v: (o - v).pow(4).sum(-1)` will do, and what
    `torch.vmap` cannot map will not.

    Raises:
        ValueError: it is neither, or is a class (`L2` for `L2()`).
    """
    if isinstance(objective, type) or not (isinstance(objective, Objective) or callable(objective)):
        raise ValueError(
            f"objective={objective!r} must be a function of output and target, or an object with `loss` and `surprise`, as L2()"
        )
    return objective if isinstance(objective, Objective) else Function(objective)
