"""What all classifiers that learn in their body share."""

from __future__ import annotations

import abc
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.continual.bodies.perceptron import Perceptron
from nestling.continual.heads.classifier import Classifier
from nestling.continual.heads.met import Met


class Body(Classifier):
    """A network that follows a stream with all its weights. It answers with one of the classes met so far.

    network: with an output for each class that may come.
    """

    def __init__(self, network: Perceptron) -> None:
        self.network, self.met = network, Met()

    @abc.abstractmethod
    def learn(self, x: Tensor, columns: Tensor) -> None:
        """Inputs `[B, d]` and the columns `[B]` of their classes, with gradients on."""

    def observe(self, inputs: Tensor, labels: Tensor) -> None:
        columns = self.met.add(labels)
        if len(self.met) > self.network.outputs:
            raise ValueError(
                f"{len(self.met)} classes came, and the network has {self.network.outputs} outputs; give it as many as may come"
            )
        with torch.enable_grad():
            self.learn(inputs, columns)

    @torch.no_grad()
    def predict(self, inputs: Tensor, among: Tensor | None = None) -> Tensor:
        allowed = self.met.allowed(among)
        return self.met.labels[self.logits(inputs).masked_fill(~allowed, -torch.inf).argmax(-1)]

    def logits(self, x: Tensor) -> Tensor:
        """`[B, d] -> [B, classes met]`."""
        return self.network(x)[:, : len(self.met)]

    def loss(self, x: Tensor, columns: Tensor) -> Tensor:
        """The mean cross-entropy among the classes met."""
        return F.cross_entropy(self.logits(x), columns)

    def weights(self) -> list[Tensor]:
        """Of the layers, `[out, in + 1]` each."""
        return [layer.weight for layer in self.network.linear()]

    def stored(self) -> Iterable[Tensor]:
        return [*self.weights(), *self.kept()]

    def kept(self) -> Iterable[Tensor]:
        """What is kept beside the weights."""
        return []

    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights())
