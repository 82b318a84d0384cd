"""A network whose weights are levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from nestling.continual.bodies.body import Body
from nestling.continual.bodies.perceptron import Perceptron
from nestling.levels import Level, LevelOptimizer
from nestling.ops.state import named_tensors


class Levelled(Body):
    """Every level moves all weights, at its period, counted in examples, and by its rule (`nestling.levels.LevelOptimizer`).

    An experience that ends is a context that ends. Nothing else is told the levels about experiences.
    """

    def __init__(self, network: Perceptron, levels: Sequence[Level]) -> None:
        super().__init__(network)
        names = [name for name, _ in network.named_parameters()]
        self.optimizer = LevelOptimizer(network, list(levels), [names] * len(levels))

    def learn(self, x: Tensor, columns: Tensor) -> None:
        with self.optimizer.watch():
            loss = self.loss(x, columns)
        loss.backward()
        self.optimizer.step(len(x))

    def end_experience(self) -> None:
        self.optimizer.end_context()

    def kept(self) -> Iterable[Tensor]:
        return named_tensors(self.optimizer.state).values()

    def bytes(self) -> int:
        """What is zero, and what levels have in common, counts once."""
        return sum(weight.nbytes for weight in self.weights()) + self.optimizer.bytes()
