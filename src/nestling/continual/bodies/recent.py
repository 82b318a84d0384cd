"""The last examples of an experience."""

from __future__ import annotations

import torch
from torch import Tensor


class Recent:
    """At most `size` inputs, those that came last."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.batches: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """A batch `[B, d]`; older ones that are not needed go."""
        self.batches.append(x)
        while sum(map(len, self.batches[1:])) >= self.size:
            del self.batches[0]

    def taken(self) -> Tensor:
        """What is there, `[n, d]`; then nothing is."""
        found, self.batches = torch.cat(self.batches)[-self.size :], []
        return found
