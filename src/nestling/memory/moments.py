"""Second moments of vectors, `sum x x^T`, and as much of them as a rule wants.

Whole they are `[B, n, n]`. In blocks along the diagonal, `[B, k, w, w]`, a vector of n numbers is cut into the fewest runs of at most
`block` neighbours: k runs of `w = ceil(n / k)`, the last filled up with zeros. What runs have to do with each other is left
out; then they are `k` times smaller, and a product or an inverse `k` or `k^2` times cheaper.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def shape(width: int, block: int | None) -> tuple[int, ...]:
    """Of one matrix over `width` numbers: `(n, n)`, or `(k, w, w)`. No block, or one that is not smaller, is the whole matrix."""
    if block is None or block >= width:
        return width, width
    runs = -(-width // block)
    return runs, *[-(-width // runs)] * 2


def second_moment(x: Tensor, block: int | None) -> Tensor:
    """`sum x x^T` over `x [B, L, n]`."""
    form = shape(x.shape[-1], block)
    x = x if len(form) == 2 else _cut(x, form)
    return x.mT @ x


def right(x: Tensor, matrix: Tensor) -> Tensor:
    """`x M [B, m, n]` of `x [B, m, n]` and a matrix, whole or in blocks."""
    if matrix.dim() == 3:
        return x @ matrix
    return (_cut(x, matrix.shape[1:]) @ matrix).transpose(1, 2).flatten(2)[..., : x.shape[-1]]


def left(matrix: Tensor, x: Tensor) -> Tensor:
    """`M x [B, n, m]` of a matrix, whole or in blocks, and `x [B, n, m]`."""
    if matrix.dim() == 3:
        return matrix @ x
    runs, width = matrix.shape[1:3]
    rows = F.pad(x, (0, 0, 0, runs * width - x.shape[1])).unflatten(1, (runs, width))
    return (matrix @ rows).flatten(1, 2)[:, : x.shape[1]]


def _cut(x: Tensor, form: tuple[int, ...]) -> Tensor:
    """`[B, k, m, w]` of `[B, m, n]`."""
    runs, width = form[:2]
    return F.pad(x, (0, runs * width - x.shape[-1])).unflatten(-1, (runs, width)).transpose(1, 2)
