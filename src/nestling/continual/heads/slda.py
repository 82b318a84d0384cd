"""Streaming linear discriminant analysis."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.continual.heads.classifier import Head
from nestling.continual.heads.moments import Moments


class StreamingLDA(Head):
    """Gaussian classes with one covariance, all of equal weight (Hayes and Kanan, arXiv 1909.01520, Eq. 1-5).

        score_c(x) = mu_c Lambda x^T - 1/2 mu_c Lambda mu_c^T,    Lambda = ((1 - shrinkage) Sigma + shrinkage I)^-1

    `Sigma` is the pooled covariance of what was seen, exactly, so the order of a stream does not matter. (The authors' running
    update takes deviations from the means as they were, and of a class's first example from zero, which fades.)

    Args:
        dim: width of the features. shrinkage: in (0, 1); theirs is 1e-4.

    Raises:
        ValueError: shrinkage is not in (0, 1).
    """

    def __init__(self, dim: int, shrinkage: float = 1e-4, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        if not 0 < shrinkage < 1:
            raise ValueError(
                f"shrinkage={shrinkage} must be in (0, 1): it is the share of the identity in the covariance"
            )
        self.shrinkage = shrinkage
        self.moments = Moments(dim, second=True, dtype=dtype)
        self._solved: tuple[Tensor, Tensor] | None = None

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.moments.add(x, columns, len(self.met))
        self._solved = None

    def scores(self, x: Tensor) -> Tensor:
        weight, bias = self.solved()
        return x.to(weight) @ weight + bias

    def solved(self) -> tuple[Tensor, Tensor]:
        """Weight `[d, C]` and bias `[C]` of all that was seen."""
        if self._solved is None:
            means = self.moments.means(self.met.counts)
            covariance = self.moments.within(self.met.counts) / self.met.counts.sum()
            identity = torch.eye(len(covariance), dtype=covariance.dtype)
            system = (1 - self.shrinkage) * covariance + self.shrinkage * identity
            weight = torch.linalg.solve(system, means.mT)
            self._solved = weight, -0.5 * (means.mT * weight).sum(0)
        return self._solved

    def stored(self) -> list[Tensor]:
        return [*self.moments.tensors(), self.met.counts]

    def parameters(self) -> int:
        return self.moments.sums.numel() + len(self.met)
