"""Random projections and a ridge regression."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.continual.heads.classifier import Head
from nestling.continual.heads.moments import Moments
from nestling.continual.heads.random_relu import RandomReLU


class RanPAC(Head):
    """Ridge regression of one-hot classes on random features of the rectifier (McDonnell et al., arXiv 2307.02251, Eq. 4-7).

        score(x) = phi(x) (sum_t phi_t^T phi_t + ridge I)^-1 sum_t phi_t^T onehot_t

    It gathers both sums over the stream and solves when it is asked. (They adapt the backbone on the first task before that,
    which is not part of a head.)

    Args:
        features: the random projection. ridge: above 0, in units of a squared feature.

    Raises:
        ValueError: the ridge is not above 0.
    """

    def __init__(self, features: RandomReLU, ridge: float = 1.0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        if not ridge > 0:
            raise ValueError(f"ridge={ridge} must be above 0")
        self.features, self.ridge = features, ridge
        self.moments = Moments(features.n, second=True, dtype=dtype)
        self._weight: Tensor | None = None

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.moments.add(self._features(x), columns, len(self.met))
        self._weight = None

    def scores(self, x: Tensor) -> Tensor:
        return self._features(x) @ self.weight()

    def weight(self) -> Tensor:
        """`[n, C]`, the solution for all that was seen."""
        if self._weight is None:
            second = self.moments.second
            assert second is not None
            factor = torch.linalg.cholesky(second + self.ridge * torch.eye(len(second), dtype=second.dtype))
            self._weight = torch.cholesky_solve(self.moments.sums.mT, factor)
        return self._weight

    def _features(self, x: Tensor) -> Tensor:
        return self.features(x.to(self.moments.sums))

    def stored(self) -> list[Tensor]:
        return [*self.moments.tensors(), self.features.projection]

    def parameters(self) -> int:
        return self.moments.sums.numel() + self.features.projection.numel()
