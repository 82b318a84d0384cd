"""The state of the write-read scan."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nestling.ops.state import State


@dataclass(frozen=True)
class ScanState(State):
    """What a scan carries from one call to the next.

    memory:   `M`, `[B, H, dk, dv]`, float32 or float64.
    momentum: `S`, same shape, or None where the writes have no momentum.
    """

    memory: Tensor
    momentum: Tensor | None = None


def per_channel(alpha: Tensor | None, k: Tensor) -> bool:
    """Whether a retention is `[B, H, L, dk]`, one for every channel of the keys, and not `[B, H, L]`."""
    return alpha is not None and alpha.dim() == k.dim()
