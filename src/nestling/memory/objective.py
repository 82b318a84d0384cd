"""What a memory is trained to do, token by token. A target is a constant here; the outer gradient flows through it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.ops.unit import bounded


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
