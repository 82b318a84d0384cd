"""Experience replay, and DER++, from a reservoir that makes a method as large as another one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.continual.bodies.descent import Descent
from nestling.continual.bodies.perceptron import Perceptron

LEVELS = 255


class Replay(Descent):
    """Each batch is joined by as many examples from a buffer (Chaudhry et al., arXiv 1902.10486), one step on all of them.

    The buffer is a reservoir (Vitter 1985) of inputs in [0, 1], a byte a number, as images are.

    Args:
        size: bytes of all that is kept, weights and momentum included.
        replays: steps on a batch, each with another draw.
        distilled: above 0 the buffer also has the logits of when an example came, and each step's loss is what DER++'s is
            (Buzzega et al., arXiv 2004.07211): of the new examples, plus half the squared error from the logits of some old ones
            times this number, plus the labels' loss of others, at equal weights.

    Raises:
        ValueError: the size leaves no room for an example.
    """

    def __init__(
        self,
        network: Perceptron,
        lr: float,
        size: int,
        momentum: float = 0.0,
        replays: int = 1,
        distilled: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(network, lr, momentum)
        self.replays, self.distilled = replays, distilled
        self.draws = torch.Generator().manual_seed(seed)
        width = network.linear()[0].in_features - 1
        each = width + 1 + (4 * network.outputs if distilled else 0)
        weights = sum(weight.nbytes for weight in self.weights()) * (2 if momentum else 1)
        if size - weights < each:
            raise ValueError(f"size={size} bytes leaves no room for an example: the network itself takes {weights}")
        capacity = (size - weights) // each
        self.inputs = torch.zeros(capacity, width, dtype=torch.uint8)
        self.columns = torch.zeros(capacity, dtype=torch.uint8)
        self.logits_then = torch.zeros(capacity if distilled else 0, network.outputs)
        self.seen = 0

    def learn(self, x: Tensor, columns: Tensor) -> None:
        for _ in range(self.replays):
            self.descend(self._loss(x, columns))
        self._keep(x, columns)

    def _loss(self, x: Tensor, columns: Tensor) -> Tensor:
        if not self.seen:
            return self.loss(x, columns)
        drawn = self._drawn(len(x))
        if not self.distilled:
            return self.loss(torch.cat([x, self._input(drawn)]), torch.cat([columns, self.columns[drawn].long()]))
        others = self._drawn(len(x))
        then = self.logits_then[others][:, : len(self.met)]
        logits = self.logits(torch.cat([x, self._input(drawn), self._input(others)])).split(
            [len(x), len(drawn), len(others)]
        )
        labelled = F.cross_entropy(logits[0], columns) + F.cross_entropy(logits[1], self.columns[drawn].long())
        return labelled + 0.5 * self.distilled * F.mse_loss(logits[2], then)

    def _drawn(self, count: int) -> Tensor:
        held = min(self.seen, len(self.inputs))
        return torch.randint(held, (min(count, held),), generator=self.draws)

    def _input(self, places: Tensor) -> Tensor:
        return self.inputs[places].float() / LEVELS

    @torch.no_grad()
    def _keep(self, x: Tensor, columns: Tensor) -> None:
        logits = F.pad(self.logits(x), (0, self.network.outputs - len(self.met))) if self.distilled else None
        for at in range(len(x)):
            place = (
                self.seen
                if self.seen < len(self.inputs)
                else int(torch.randint(self.seen + 1, (), generator=self.draws))
            )
            self.seen += 1
            if place < len(self.inputs):
                self.inputs[place] = (x[at] * LEVELS).round().to(torch.uint8)
                self.columns[place] = columns[at].to(torch.uint8)
                if logits is not None:
                    self.logits_then[place] = logits[at]

    def kept(self) -> Iterable[Tensor]:
        return [*super().kept(), self.inputs, self.columns, self.logits_then]
