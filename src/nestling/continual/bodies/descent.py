"""Gradient descent on the stream as it comes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nestling.continual.bodies.body import Body
from nestling.continual.bodies.perceptron import Perceptron


class Descent(Body):
    """A step a batch, and nothing against forgetting.

    lr, momentum: of `torch.optim.SGD`.
    """

    def __init__(self, network: Perceptron, lr: float, momentum: float = 0.0) -> None:
        super().__init__(network)
        self.lr = lr
        self.optimizer = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.descend(self.loss(x, columns))

    def descend(self, loss: Tensor) -> None:
        """One step."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def kept(self) -> Iterable[Tensor]:
        states = self.optimizer.state.values()
        return [value for state in states for value in state.values() if isinstance(value, Tensor) and value.dim()]
