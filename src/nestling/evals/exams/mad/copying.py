"""Selective copying (MAD's task 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.metrics import macro_accuracy
from nestling.evals.exams.task import IGNORED, Example, Part


@dataclass(frozen=True)
class SelectiveCopying:
    """Symbols among blanks, a sign to copy, then as many blanks: there the symbols are asked, in order.

    The last symbol is the sign, the one before it the blank. Each blank falls into one of the first `gaps` gaps: gap `i` is in
    front of symbol `i`, the last one behind all of them. mad-lab has `gaps=copied`, so that its last symbol always stands right
    before the sign, which is no work to find; None is all `copied + 1`.
    """

    symbols: int = 16
    size: int = 256
    copied: int = 16
    gaps: int | None = None
    examples: int | None = 12_800

    pooled: ClassVar[bool] = False
    metric = staticmethod(macro_accuracy)

    def __post_init__(self) -> None:
        if self.size < 2 * self.copied + 1 or self.copied < 1:
            raise UserError(f"size={self.size}: copying {self.copied} symbols needs at least {2 * self.copied + 1}")
        if self.symbols < 3:
            raise UserError(f"symbols={self.symbols}: a blank, a sign to copy and something to copy are at least 3")

    @property
    def length(self) -> int:
        return self.size

    @property
    def chance(self) -> float:
        return 1 / (self.symbols - 2)

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        blank, sign = self.symbols - 2, self.symbols - 1
        copied = random.integers(blank, size=self.copied)
        blanks = self.size - 2 * self.copied - 1
        places = random.integers(self.copied + 1 if self.gaps is None else self.gaps, size=blanks)
        told = np.insert(copied, places, blank).tolist()
        return (
            [*told, sign, *[blank] * self.copied],
            [IGNORED] * (len(told) + 1) + copied.tolist(),
        )
