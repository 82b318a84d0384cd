"""Heads that descend: a linear one or an MLP, alone on the stream, with replay, or on all that was seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.continual.heads.classifier import Head
from nestling.continual.heads.met import padded

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


def adam(lr: float) -> Optimizer:
    """Adam without weight decay."""
    return lambda weights: torch.optim.Adam(weights, lr=lr)


def sgd(lr: float) -> Optimizer:
    """Gradient descent."""
    return lambda weights: torch.optim.SGD(weights, lr=lr)


class Descent(Head):
    """Softmax regression on the features, or an MLP of one hidden layer: a step of an optimiser a batch, as it comes.

    On a frozen backbone with one class after the other it is the linear probe, which forgets. A class's output starts at zero
    when the class is met.

    Args:
        dim: width of the features. optimizer: from weights, as `adam(1e-3)`. hidden: units of the hidden layer, 0 for none.
        seed: of the hidden layer.
    """

    def __init__(self, dim: int, optimizer: Optimizer, hidden: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.draws = torch.Generator().manual_seed(seed)
        self.hidden: list[Tensor] = []
        if hidden:
            first = (2 / dim) ** 0.5 * torch.randn(dim, hidden, generator=self.draws)
            self.hidden = [first.requires_grad_(), torch.zeros(hidden, requires_grad=True)]
        width = hidden or dim
        self.output = [torch.zeros(0, width, requires_grad=True), torch.zeros(0, requires_grad=True)]  # of C classes
        self.optimizer = optimizer([*self.hidden, *self.output])

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.grow()
        self.step(x.to(self.output[0]), columns)

    def step(self, x: Tensor, columns: Tensor) -> None:
        """One step on the mean loss of a batch."""
        with torch.enable_grad():
            loss = F.cross_entropy(self.logits(x), columns)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def logits(self, x: Tensor) -> Tensor:
        """`[B, d] -> [B, C]`."""
        if self.hidden:
            x = torch.relu(x @ self.hidden[0] + self.hidden[1])
        return x @ self.output[0].mT + self.output[1]

    def scores(self, x: Tensor) -> Tensor:
        return self.logits(x.to(self.output[0]))

    def grow(self) -> None:
        """A row of zeros for each new class, in the weights and in what the optimiser keeps of them."""
        for weight in self.output:
            old, classes = len(weight), len(self.met)
            weight.data = padded(weight.data, classes)
            weight.grad = None
            kept = self.optimizer.state[weight]
            for name, value in kept.items():
                if value.dim() and len(value) == old:
                    kept[name] = padded(value, classes)

    def stored(self) -> list[Tensor]:
        kept = [value for state in self.optimizer.state.values() for value in state.values() if value.dim()]
        return [*self.hidden, *self.output, *kept]

    def parameters(self) -> int:
        return sum(weight.numel() for weight in (*self.hidden, *self.output))
