"""Online structured Laplace (Ritter et al., arXiv 1805.07810)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nestling.continual.bodies.curvature import Factors, factors
from nestling.continual.bodies.descent import Descent
from nestling.continual.bodies.perceptron import Perceptron
from nestling.continual.bodies.recent import Recent


class OnlineLaplace(Descent):
    """Descent, and the pull of a Gaussian posterior whose precision is Kronecker-factored, layer by layer.

        strength / 2 tr(dW^T B dW A),    dW = W - W*,    W* where the last experience ended

    A and B are sums over the experiences so far of the factors of the Fisher information at their ends, A divided by their
    number, so that with one experience, and with alike ones, `A (x) B` is the precision of all. The pull is taken exactly, as
    `ElasticWeights` takes its own, in the eigenvectors of A and B; once in `period` batches, for their steps together.

    sample: as of `ElasticWeights`.
    """

    def __init__(
        self,
        network: Perceptron,
        lr: float,
        strength: float,
        momentum: float = 0.0,
        sample: int = 1000,
        period: int = 4,
    ) -> None:
        super().__init__(network, lr, momentum)
        self.strength, self.recent, self.period, self.batches = strength, Recent(sample), period, 0
        self.factors: list[Factors] = []
        self.experiences = 0
        self.bases: list[tuple[Tensor, Tensor, Tensor]] = []
        self.centre = [weight.detach().clone() for weight in self.weights()]

    def learn(self, x: Tensor, columns: Tensor) -> None:
        super().learn(x, columns)
        self.recent.add(x)
        self.batches += 1
        if self.batches % self.period == 0:
            self.pull(self.period * self.lr)

    @torch.no_grad()
    def pull(self, rate: float) -> None:
        """`argmin_W strength / 2 tr(dW^T B dW A) + 1 / (2 rate) |W - W'|^2` from the weights `W'`."""
        for weight, centre, (inner, outer, eigenvalues) in zip(
            self.weights(), self.centre, self.bases, strict=bool(self.bases)
        ):
            moved = outer.mT @ (weight - centre) @ inner / (1 + rate * self.strength * eigenvalues)
            weight.copy_(centre + outer @ moved @ inner.mT)

    def end_experience(self) -> None:
        found = factors(self, self.recent.taken())
        before = self.factors or [(torch.zeros_like(a), torch.zeros_like(b)) for a, b in found]
        self.factors = [(a + x, b + y) for (a, b), (x, y) in zip(before, found, strict=True)]
        self.experiences += 1
        self.bases = [_basis(a / self.experiences, b) for a, b in self.factors]
        self.centre = [weight.detach().clone() for weight in self.weights()]

    def kept(self) -> Iterable[Tensor]:
        precision = [matrix for pair in self.factors for matrix in pair]
        return [*super().kept(), *self.centre, *precision, *(matrix for basis in self.bases for matrix in basis)]


def _basis(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvectors of A and of B, and the eigenvalues of their Kronecker product, `[out, in]`."""
    (inner_values, inner), (outer_values, outer) = torch.linalg.eigh(a), torch.linalg.eigh(b)
    return inner, outer, outer_values.clamp_min(0)[:, None] * inner_values.clamp_min(0)
