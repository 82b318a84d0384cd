"""Compression (MAD's task 6): a sequence out of one state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.metrics import macro_accuracy
from nestling.evals.exams.task import Example, Part


@dataclass(frozen=True)
class Compression:
    """Random symbols and a sign, the last symbol; all of them, the sign too, come back out of the state after the last."""

    symbols: int = 16
    size: int = 32
    examples: int | None = 12_800

    pooled: ClassVar[bool] = True
    metric = staticmethod(macro_accuracy)

    def __post_init__(self) -> None:
        if self.size < 2 or self.symbols < 2:
            raise UserError(f"size={self.size}, symbols={self.symbols}: compression needs at least 2 of each")

    @property
    def length(self) -> int:
        return self.size

    @property
    def chance(self) -> float:
        return 2 / self.symbols  # the sign always stands at the end; of the others one is as likely as another

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        sequence = [*random.integers(self.symbols - 1, size=self.size - 1).tolist(), self.symbols - 1]
        return sequence, sequence
