"""What three classic heads know of a stream: how many examples a class had, their sum, and the second moment of all."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.continual.heads.met import codes, padded


class Moments:
    """Running sums over a stream of features.

    sums: `[C, d]`, of each class. second: `[d, d]`, the sum of `x^T x` over all examples; None where it is not asked for.
    """

    def __init__(self, dim: int, second: bool, dtype: torch.dtype) -> None:
        self.sums = torch.zeros(0, dim, dtype=dtype)
        self.second = torch.zeros(dim, dim, dtype=dtype) if second else None

    def add(self, x: Tensor, columns: Tensor, classes: int) -> None:
        """A batch `[B, d]` with the columns `[B]` of its classes, of which there are `classes` by now."""
        x = x.to(self.sums)
        self.sums = padded(self.sums, classes).addmm_(codes(columns, classes, x.dtype).mT, x)
        if self.second is not None:
            self.second.addmm_(x.mT, x)

    def means(self, counts: Tensor) -> Tensor:
        """`[C, d]`, from the counts `[C]`."""
        return self.sums / counts[:, None]

    def within(self, counts: Tensor) -> Tensor:
        """The scatter of examples around the means of their classes, summed over all, `[d, d]`."""
        assert self.second is not None
        return self.second - self.means(counts).mT @ self.sums

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [self.sums] if self.second is None else [self.sums, self.second]
