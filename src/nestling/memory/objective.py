"""What a memory is trained to do, token by token. A target is a constant here; the outer gradient flows through it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
