"""In-context regression (after Garg et al. 2022, arXiv 2208.01066), of whole numbers, so that any model of symbols can sit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.metrics import accuracy
from nestling.evals.exams.task import IGNORED, Example, Part


@dataclass(frozen=True)
class Regression:
    """Pairs of `x` and `y = round(a x + b)` for a line of its own in each example; at each `x`, its `y` is asked.

    `x` is one of `steps` symbols, numbers at equal distances, and `y` one of as many others. The line goes through two of the values
    `y` at the first and at the last `x`, drawn uniformly, so that it never leaves them. How many examples a model needs is
    seen by `nestling.evals.exams.metrics.by_order`: nothing tells the first answer, two different `x` nearly tell the line.
    """

    steps: int = 16
    pairs: int = 32
    examples: int | None = None

    pooled: ClassVar[bool] = False
    metric = staticmethod(accuracy)

    def __post_init__(self) -> None:
        if self.steps < 2 or self.pairs < 1:
            raise UserError(f"steps={self.steps}, pairs={self.pairs}: a line needs at least 2 steps and 1 pair")

    @property
    def symbols(self) -> int:
        return 2 * self.steps

    @property
    def length(self) -> int:
        return 2 * self.pairs

    @property
    def chance(self) -> float:
        return 1 / self.steps

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        left, right = random.integers(self.steps, size=2)
        x = random.integers(self.steps, size=self.pairs)
        y = self.steps + np.rint(left + (right - left) * x / (self.steps - 1)).astype(int)
        targets = np.full((self.pairs, 2), IGNORED)
        targets[:, 0] = y
        return np.stack([x, y], axis=1).flatten().tolist(), targets.flatten().tolist()
