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
