"""What a memory fades to where it is not written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from nestling.memory.network import Network


class Retention(Protocol):
    """What is left of a weight after a token, of which `alpha` is retained."""

    def rest(self, network: Network) -> tuple[Tensor, ...] | None:
        """The weights that a memory comes to rest at, each `[*heads, in, out]`; None is zero."""
        ...


@dataclass(frozen=True)
class ToZero:
    """`W <- alpha W`, as the paper has it (Eq. 88): in the end a memory forgets what it was born with, too."""

    def rest(self, network: Network) -> None:
        return None


@dataclass(frozen=True)
class ToInitial:
    """`W <- W_0 + alpha (W - W_0)`: what was read fades, the meta-learned initial state stays.

    The retention term of the memory's objective (Def. 5) is then `|W - W_0|^2` in place of `|W|^2`. A memory is the same after
    ten tokens and after ten thousand, but for what it has read in its last `1 / (1 - alpha)` tokens: so what was learnt on
    short sequences holds on long ones. With `ToZero`, `W_0` is a transient that outer learning comes to rely on.
    """

    def rest(self, network: Network) -> tuple[Tensor, ...]:
        return network.weights()
