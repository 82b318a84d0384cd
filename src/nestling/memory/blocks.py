"""Symmetric matrices over the numbers of a vector: whole, `[B, n, n]`, or only the blocks along the diagonal, `[B, k, w, w]`.

A vector of n numbers is cut into the fewest runs of at most `block` neighbours: k runs of `w = ceil(n / k)`, the last filled up
with zeros. What runs have to do with each other is left out: then a matrix is `k` times smaller, and a product or an inverse
`k` or `k^2` times cheaper. No block, or one that is not smaller than n, is the whole matrix.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def shape(width: int, block: int | None) -> tuple[int, ...]:
    """Of one matrix over `width` numbers: `(n, n)`, or `(k, w, w)`."""
    if block is None or block >= width:
        return width, width
    runs = -(-width // block)
    return runs, *[-(-width // runs)] * 2


def moment(x: Tensor, block: int | None) -> Tensor:
    """The sum of `x x^T` over `x [B, L, n]`."""
    form = shape(x.shape[-1], block)
    x = x if len(form) == 2 else _cut(x, form)
    return x.mT @ x


def within(whole: Tensor, form: tuple[int, ...]) -> Tensor:
    """What of matrices `[B, n, n]` is in blocks of the shape `(k, w, w)`."""
    rows = _cut(whole, form).transpose(-2, -1)  # [B, k, w, n]: by column, for the matrices are symmetric
    return _cut(rows, form).diagonal(dim1=1, dim2=2).movedim(-1, 1)


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """`x M [B, m, n]` of `x [B, m, n]` and a matrix of either kind."""
    if matrix.dim() == 3:
        return x @ matrix
    return (_cut(x, matrix.shape[1:]) @ matrix).transpose(1, 2).flatten(2)[..., : x.shape[-1]]


def _cut(x: Tensor, form: tuple[int, ...]) -> Tensor:
    """`[B, k, m, w]` of `[B, m, n]`."""
    runs, width = form[:2]
    return F.pad(x, (0, runs * width - x.shape[-1])).unflatten(-1, (runs, width)).transpose(-3, -2)
