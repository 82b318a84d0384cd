"""Rules made of plain descent: over a window of tokens (Omega), and with orthogonal writes.

    GradientDescent(momentum)                     every token's own gradient, or a running mean of them
    Omega(window, GradientDescent(..))            the mean gradient of the last tokens
    Orthogonal(GradientDescent(..) | Omega(..))   what is gathered, made orthogonal before it is written

They nest as written. Atlas (arXiv 2505.23735) is `Orthogonal(Omega(window, GradientDescent(momentum=True)))`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from nestling.memory.rule import GradientDescent


class Compound:
    """A rule around another: it erases nothing, and has the momentum of the one inside."""

    rule: Any

    @property
    def momentum(self) -> bool:
        return self.rule.momentum

    def factors(self, eta: Tensor, x: Tensor) -> tuple[None, Tensor]:
        return None, eta


@dataclass(frozen=True)
class Omega(Compound):
    """At every token a step on the mean objective of the last `window` tokens (Atlas, arXiv 2505.23735), not of one.

    All are taken at the weights of the current chunk's start, tokens of the chunk before included. In the first tokens the
    mean counts those not yet there as 0. The printed sum is the same with a rate `window` times as large; all tokens of a
    window weigh alike (the paper gates them). A window of 1 is plain descent.
    """

    window: int
    rule: GradientDescent = GradientDescent()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(
                f"window={self.window} must be a whole number, at least 1: the tokens that a step is taken for"
            )
        if not isinstance(self.rule, GradientDescent):
            raise ValueError(f"rule={self.rule}: Omega gathers plain gradients; use GradientDescent()")


@dataclass(frozen=True)
class Orthogonal(Compound):
    """Writes the nearest semi-orthogonal matrix of what was gathered, by Newton-Schulz, as Muon does: `W <- alpha W - eta NS(S)`.

    `S <- theta S + (1 - theta) gradient`, with momentum; its scale does not matter, eta is the spectral norm of a write. (A
    single gradient has rank one, and is only brought to norm 1.)

    It has no form without every token's matrices: a piece of a chunk costs `tokens x in x out` numbers a weight and head.

    steps: of Newton-Schulz, see `nestling.ops.newton_schulz`. What is gathered has the rank of a few tokens: each step more
        raises fourfold what is rounding beside it, and the outer gradient there. Muon's five are for full ranks.
    """

    rule: GradientDescent | Omega = GradientDescent(momentum=True)  # noqa: RUF009 - frozen
    steps: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.rule, GradientDescent | Omega):
            raise ValueError(f"rule={self.rule}: what is made orthogonal is gathered by GradientDescent() or Omega()")
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")


def window_of(rule: object) -> int:
    """How many tokens a step is taken for."""
    inner = rule.rule if isinstance(rule, Orthogonal) else rule
    return inner.window if isinstance(inner, Omega) else 1
