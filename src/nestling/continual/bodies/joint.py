"""Joint training: what a network could do with all that was seen at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nestling.continual.bodies.descent import Descent
from nestling.continual.bodies.perceptron import Perceptron


class Joint(Descent):
    """Keeps everything, and when it is asked after new examples came goes over all of it in random order, from the start.

    An upper bound, not a continual learner.

    passes: over all examples. batch: examples of a step. seed: of their order.
    """

    def __init__(
        self, network: Perceptron, lr: float, momentum: float = 0.0, passes: int = 1, batch: int = 32, seed: int = 0
    ) -> None:
        super().__init__(network, lr, momentum)
        self.passes, self.batch = passes, batch
        self.draws = torch.Generator().manual_seed(seed)
        self.start = [weight.detach().clone() for weight in self.weights()]
        self.examples: list[tuple[Tensor, Tensor]] = []
        self._fitted = True

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.examples.append((x, columns))
        self._fitted = False

    def predict(self, inputs: Tensor, among: Tensor | None = None) -> Tensor:
        if not self._fitted:
            self.fit()
        return super().predict(inputs, among)

    def fit(self) -> None:
        """From the start, over all examples."""
        x, columns = (torch.cat(part) for part in zip(*self.examples, strict=True))
        self.examples, self._fitted = [(x, columns)], True
        for weight, start in zip(self.weights(), self.start, strict=True):
            weight.data.copy_(start)
        self.optimizer.state.clear()
        for _ in range(self.passes):
            for places in torch.randperm(len(x), generator=self.draws).split(self.batch):
                with torch.enable_grad():
                    self.descend(self.loss(x[places], columns[places]))

    def kept(self) -> Iterable[Tensor]:
        return [*super().kept(), *self.start, *(tensor for batch in self.examples for tensor in batch)]
