"""The nearest class mean."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.continual.heads.classifier import Head
from nestling.continual.heads.moments import Moments


class NearestClassMean(Head):
    """The class whose mean is nearest, in Euclidean distance (Mensink et al. 2013; iCaRL, Rebuffi et al., arXiv 1611.07725).

    dim: width of the features.
    """

    def __init__(self, dim: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.moments = Moments(dim, second=False, dtype=dtype)

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.moments.add(x, columns, len(self.met))

    def scores(self, x: Tensor) -> Tensor:
        means = self.moments.means(self.met.counts)
        return x.to(means) @ means.mT - 0.5 * means.square().sum(-1)  # less half of |x|^2, which no class changes

    def stored(self) -> list[Tensor]:
        return [*self.moments.tensors(), self.met.counts]

    def parameters(self) -> int:
        return self.moments.sums.numel()
