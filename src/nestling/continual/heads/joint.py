"""Joint training: what a head could do with all that was seen at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nestling.continual.heads.classifier import Head


class Joint(Head):
    """Softmax regression on every example so far, to convergence (L-BFGS): an upper bound, not a continual learner.

    It keeps everything, and fits anew when it is asked after new examples came, from where it stood.

    Args:
        dim: width of the features. decay: half of it times the squared weights is added to the mean loss.
    """

    def __init__(self, dim: int, decay: float = 1e-4, steps: int = 100) -> None:
        super().__init__()
        self.decay, self.steps = decay, steps
        self.batches: list[tuple[Tensor, Tensor]] = []
        self.weight = torch.zeros(dim + 1, 0)
        self._fitted = True

    def learn(self, x: Tensor, columns: Tensor) -> None:
        self.batches.append((x.float(), columns))
        self._fitted = False

    def scores(self, x: Tensor) -> Tensor:
        if not self._fitted:
            self.fit()
        return x.float() @ self.weight[:-1] + self.weight[-1]

    def fit(self) -> None:
        """The minimum for all examples."""
        x, columns = (torch.cat(part) for part in zip(*self.batches, strict=True))
        self.batches = [(x, columns)]
        start = F.pad(self.weight, (0, len(self.met) - self.weight.shape[1]))
        weight = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([weight], max_iter=self.steps, history_size=10, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(x @ weight[:-1] + weight[-1], columns)
            value = value + 0.5 * self.decay * weight[:-1].square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        self.weight, self._fitted = weight.detach(), True

    def stored(self) -> list[Tensor]:
        return [self.weight, *(tensor for batch in self.batches for tensor in batch)]

    def parameters(self) -> int:
        return self.weight.numel()
