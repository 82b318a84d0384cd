"""Online elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796; Schwarz et al., arXiv 1805.06370)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nestling.continual.bodies.curvature import diagonals
from nestling.continual.bodies.descent import Descent
from nestling.continual.bodies.perceptron import Perceptron
from nestling.continual.bodies.recent import Recent


class ElasticWeights(Descent):
    """Descent, and a quadratic pull to where the last experience ended: `strength / 2 sum F (w - w*)^2`.

    F is the sum over the experiences so far of the Fisher information's diagonal at their ends. The pull is taken exactly,
    `argmin_w strength / 2 sum F (w - w*)^2 + 1 / (2 lr) |w - w'|^2` from where a step on the loss has led, since a step on the
    sum diverges where it is stiff.

    sample: examples, the last of an experience, that measure F at its end and are then let go.
    """

    def __init__(
        self, network: Perceptron, lr: float, strength: float, momentum: float = 0.0, sample: int = 1000
    ) -> None:
        super().__init__(network, lr, momentum)
        self.strength, self.recent = strength, Recent(sample)
        self.fisher = [torch.zeros_like(weight) for weight in self.weights()]
        self.centre = [weight.detach().clone() for weight in self.weights()]

    def learn(self, x: Tensor, columns: Tensor) -> None:
        super().learn(x, columns)
        self.recent.add(x)
        with torch.no_grad():
            for weight, centre, fisher in zip(self.weights(), self.centre, self.fisher, strict=True):
                pull = self.lr * self.strength * fisher
                weight.lerp_(centre, pull / (1 + pull))

    def end_experience(self) -> None:
        for total, new in zip(self.fisher, diagonals(self, self.recent.taken()), strict=True):
            total += new
        self.centre = [weight.detach().clone() for weight in self.weights()]

    def kept(self) -> Iterable[Tensor]:
        return [*super().kept(), *self.fisher, *self.centre]
