"""What a memory fades to where it is not written, and in which geometry it is written.

How much a token retains is data: `alpha` of a call, None for all, a number a head, or one a channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.memory.network import Network


class Retention:
    """What is left of a weight after a token, of which `alpha` is retained: `W <- alpha W`, unless a kind says otherwise."""

    maps: bool = False  # whether what is stored is another thing than the weights

    def rest(self, network: Network) -> tuple[Tensor, ...] | None:
        """The weights that a memory comes to rest at, each `[*heads, in, out]`; None is zero."""
        return None

    def weight(self, stored: Tensor) -> Tensor:
        """The weight `[.., in, out]` that is read, and at which surprises are taken, for what is stored and written to."""
        return stored


@dataclass(frozen=True)
class ToZero(Retention):
    """`W <- alpha W`, as the paper has it (Eq. 88): in the end a memory forgets what it was born with, too."""


@dataclass(frozen=True)
class ToInitial(Retention):
    """`W <- W_0 + alpha (W - W_0)`: what was read fades, the meta-learned initial state stays.

    The retention term of the memory's objective (Def. 5) is then `|W - W_0|^2` in place of `|W|^2`. A memory is the same after
    ten tokens and after ten thousand, but for what it has read in its last `1 / (1 - alpha)` tokens: so what was learnt on
    short sequences holds on long ones. With `ToZero`, `W_0` is a transient that outer learning comes to rely on.
    """

    def rest(self, network: Network) -> tuple[Tensor, ...]:
        return network.weights()


@dataclass(frozen=True)
class KL(Retention):
    """Weights on a simplex, held to what they were by the divergence (Memora, arXiv 2504.13173).

    The proximal step under `KL(W, W_t)` moves the logarithm: `A <- alpha A - eta gradient(W)`, `W = total softmax(A)` over the
    inputs of each output, and what is not written fades to the uniform weights. What is stored is `A`: weights are
    positive, and each output is an average of its inputs.

    total: sum of the weights into each output.
    """

    total: float = 1.0
    maps = True

    def __post_init__(self) -> None:
        if not self.total > 0:
            raise ValueError(f"total={self.total} must be above 0: it is the sum of the weights into each output")

    def weight(self, stored: Tensor) -> Tensor:
        return self.total * stored.softmax(-2)


@dataclass(frozen=True)
class Lq(Retention):
    """Weights held by their `q`-norm (Moneta, arXiv 2504.13173): `A <- alpha A - eta gradient(W)`, `W = A / |A|_q^(q - 2)`.

    The norm is of the whole matrix. At `q = 2` it is `ToZero`. Beyond 3 the weights grow where `A` fades: not for memories that
    start at zero.

    q: at least 2, finite.
    """

    q: float = 4.0
    maps = True

    def __post_init__(self) -> None:
        if not 2 <= self.q < math.inf:
            raise ValueError(f"q={self.q} must be at least 2, where it is the plain norm, and finite")

    def weight(self, stored: Tensor) -> Tensor:
        zero = (stored == 0).all(-1, keepdim=True).all(-2, keepdim=True)  # where a norm has no gradient
        size = torch.linalg.vector_norm(torch.where(zero, 1.0, stored), self.q, dim=(-2, -1), keepdim=True)
        return stored / size.clamp_min(torch.finfo(stored.dtype).tiny ** 0.25) ** (self.q - 2)
