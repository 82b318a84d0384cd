"""What the function of this folder is given, and when it applies."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from nestling.memory.network import MLP
from nestling.memory.objective import Huber
from nestling.memory.retention import ToZero
from nestling.memory.rule import DeltaGradientDescent
from nestling.memory.target import SelfGenerated
from nestling.ops.broadcast import broadcast

LONGEST = 64  # tokens of a block: with retention 1/2 what is left of its start is 5e-20
LEAST = 0.5  # retention


def fits(network: Any, objective: Any, rule: Any, target: Any, retention: Any, retention_floor: float) -> bool:
    """Whether these parts make up the memory of this folder."""
    paper_s = type(network) is MLP and (network.depth, network.residual, network.gated) == (2, True, False)
    parts = paper_s, type(objective) is Huber, type(target) is SelfGenerated  # a subclass may mean another
    return all(parts) and rule == DeltaGradientDescent() and retention == ToZero() and retention_floor >= LEAST


class Given(NamedTuple):
    """q, k, v: `[.., n, d]`; q is None where nothing is read, and may be of the last memories (dimension 1) alone.
    eta, alpha: `[.., n]`. up, down: the running weights `[.., d, h]` and `[.., h, d]`. held_up, held_down: those that the
    chunk started from, None where they are the running ones."""

    q: Tensor | None
    k: Tensor
    v: Tensor
    eta: Tensor
    alpha: Tensor
    up: Tensor
    down: Tensor
    held_up: Tensor | None
    held_down: Tensor | None

    @property
    def all(self) -> tuple[int, ...]:
        """Rows, memories and heads: `..` of the weights."""
        return tuple(self.up.shape[:-2])

    @property
    def keys(self) -> tuple[int, ...]:
        """`..` of what keys and gates say: of size 1 where memories share both."""
        return broadcast(self.k.shape[:-2], self.eta.shape[:-1], self.alpha.shape[:-1])
