"""Where a memory's target comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from nestling.memory.network import Network
from nestling.ops.unit import unit


@dataclass(frozen=True)
class Given:
    """The target is the value."""

    def __call__(self, network: Network, weights: Sequence[Tensor], v: Tensor) -> Tensor:
        return v


@dataclass(frozen=True)
class SelfGenerated:
    """The memory proposes its own target from the value (Eq. 84), at unit norm: unnormalised, the loop explodes."""

    def __call__(self, network: Network, weights: Sequence[Tensor], v: Tensor) -> Tensor:
        return unit(network.read(v, weights))
