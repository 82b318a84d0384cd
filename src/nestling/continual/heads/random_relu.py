"""Random features of the rectifier: what RanPAC puts between a backbone and its head."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nestling.memory.network import at_least_one

Directions = Callable[[int, int, torch.Generator], Tensor]


def gaussian(n: int, dim: int, draws: torch.Generator) -> Tensor:
    """Independent normal directions `[dim, n]`."""
    return torch.randn(dim, n, generator=draws, dtype=torch.float32)


def orthogonal(n: int, dim: int, draws: torch.Generator) -> Tensor:
    """Normal directions `[dim, n]` that are orthogonal in every run of `dim`: each is distributed as a Gaussian one, and kernels come
    out with less variance (Yu et al., arXiv 1610.09072).
    """
    normal, other = torch.randn(2, math.ceil(n / dim), dim, dim, generator=draws, dtype=torch.float32)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # uniform only with these signs
    lengths = torch.linalg.vector_norm(other, dim=-2, keepdim=True)
    return (q * lengths).mT.reshape(-1, dim)[:n].mT.contiguous()


class RandomReLU(nn.Module):
    """`phi(x) = sqrt(2 / n) relu(x R)`, `R [d, n]` standard normal: drawn once, never learnt.

    `E[phi(x) . phi(y)]` is the arc-cosine kernel of degree 1 (Cho and Saul 2009), `|x| |y| (sin a + (pi - a) cos a) / pi` for the angle
    `a` between them, so `|phi(x)|` is about `|x|` whatever n is. (McDonnell et al., arXiv 2307.02251, leave the factor out; their
    ridge is `n / 2` times the one that does the same here.)

    Args:
        n: features. dim: `d`. seed: of the draw. directions: how `R` is drawn, `gaussian` or `orthogonal`.

    Raises:
        ValueError: `n` or `dim` is below 1.
    """

    projection: Tensor

    def __init__(self, n: int, dim: int, seed: int = 0, directions: Directions = gaussian) -> None:
        super().__init__()
        at_least_one(n=n, dim=dim)
        self.n, self.dim = n, dim
        self.register_buffer("projection", directions(n, dim, torch.Generator().manual_seed(seed)))

    def extra_repr(self) -> str:
        return f"n={self.n}, dim={self.dim}"

    def width(self, dim: int) -> int:
        """`n`."""
        return self.n

    def forward(self, x: Tensor) -> Tensor:
        """`[.., d] -> [.., n]`."""
        return (2 / self.n) ** 0.5 * torch.relu(x @ self.projection.to(x.dtype))
