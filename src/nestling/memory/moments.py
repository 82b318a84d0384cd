"""Second moments of vectors, `sum x x^T`, and as much of them as a rule wants.

Whole they are `[B, n, n]`. In blocks along the diagonal, `[B, k, w, w]`, a vector of n numbers is cut into the fewest runs of at most
`block` neighbours: k runs of `w = ceil(n / k)`, the last filled up with zeros. What runs have to do with each other is left
out; then they are `k` times smaller, and a product or an inverse `k` or `k^2` times cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Moments:
    """Which of them are gathered.

    block: of the widest block, None for whole matrices. every: from every so many-th token of what is read at once.
    """

    block: int | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.block is not None and self.block < 1:
            raise ValueError(f"block={self.block} must be at least 1, or None for whole matrices")
        if self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1, which is every token")

    def shape(self, width: int) -> tuple[int, ...]:
        """Of those over `width` numbers: `(n, n)`, or `(k, w, w)`."""
        if self.block is None or self.block >= width:
            return width, width
        runs = -(-width // self.block)
        return runs, *[-(-width // runs)] * 2

    def of(self, x: Tensor) -> Tensor:
        """`sum x x^T` over `x [B, L, n]`."""
        x = x[:, :: self.every]
        form = self.shape(x.shape[-1])
        x = x if len(form) == 2 else _cut(x, form)
        return x.mT @ x


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """`x M [B, m, n]` of `x [B, m, n]` and a matrix, whole or in blocks."""
    if matrix.dim() == 3:
        return x @ matrix
    return (_cut(x, matrix.shape[1:]) @ matrix).transpose(1, 2).flatten(2)[..., : x.shape[-1]]


def _cut(x: Tensor, form: tuple[int, ...]) -> Tensor:
    """`[B, k, m, w]` of `[B, m, n]`."""
    runs, width = form[:2]
    return F.pad(x, (0, runs * width - x.shape[-1])).unflatten(-1, (runs, width)).transpose(1, 2)
