"""Experience replay on features: a reservoir beside a head that descends."""

from __future__ import annotations

import torch
from torch import Tensor

from nestling.continual.heads.descent import Descent, Optimizer


class Replay(Descent):
    """Each batch is joined by as many examples from a buffer (Chaudhry et al., arXiv 1902.10486), one step on all of them.

    The buffer is a reservoir (Vitter 1985): every example met is in it with the same probability. It holds features, since the
    backbone stands still (latent replay, Pellegrini et al., arXiv 1912.01100).

    Args:
        dim, optimizer, hidden, seed: as of `Descent`.
        size: bytes of everything that is kept, weights and the optimiser's averages included; what they leave is the buffer, so
            it gets smaller as classes come.
        replays: steps on a batch, each with another draw (Aljundi et al., arXiv 1908.04742).

    Raises:
        ValueError: the size leaves no room for one example.
    """

    def __init__(
        self, dim: int, optimizer: Optimizer, size: int, hidden: int = 0, replays: int = 1, seed: int = 0
    ) -> None:
        super().__init__(dim, optimizer, hidden, seed)
        self.size, self.replays, self.seen = size, replays, 0
        self.features = torch.zeros(0, dim)
        self.columns = torch.zeros(0, dtype=torch.int16)

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.grow()
        x = x.to(self.features)
        for _ in range(self.replays):
            drawn = torch.randint(max(1, len(self.features)), (len(x),), generator=self.draws)
            drawn = drawn[: len(self.features) * len(x)]  # none from an empty buffer
            self.step(torch.cat([x, self.features[drawn]]), torch.cat([columns, self.columns[drawn].long()]))
        self._keep(x, columns)

    def _keep(self, x: Tensor, columns: Tensor) -> None:
        capacity = self.capacity()
        if capacity < len(self.features):  # new classes took the room: leave out at random
            stay = torch.randperm(len(self.features), generator=self.draws)[:capacity]
            self.features, self.columns = self.features[stay], self.columns[stay]
        free = min(capacity - len(self.features), len(x))
        self.features = torch.cat([self.features, x[:free]])
        self.columns = torch.cat([self.columns, columns[:free].to(self.columns)])
        self.seen += free
        for one, column in zip(x[free:], columns[free:], strict=True):
            self.seen += 1
            place = int(torch.randint(self.seen, (), generator=self.draws))
            if place < capacity:
                self.features[place], self.columns[place] = one, column

    def capacity(self) -> int:
        """How many examples there is room for."""
        weights = sum(tensor.nbytes for tensor in super().stored())
        each = self.features.shape[1] * self.features.itemsize + self.columns.itemsize
        if self.size - weights < each:
            raise ValueError(f"size={self.size} bytes leaves no room for an example: the head itself takes {weights}")
        return (self.size - weights) // each

    def stored(self) -> list[Tensor]:
        return [*super().stored(), self.features, self.columns]
