"""Multi-query associative recall (Arora et al. 2023, arXiv 2312.04927, zoology)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.metrics import accuracy
from nestling.evals.exams.task import IGNORED, Example, Part


@dataclass(frozen=True)
class MQAR:
    """`pairs` keys with their values, all told first; then every key is asked once, among random symbols.

    Keys are different symbols of 1 to `symbols / 2 - 1`, values different ones of the rest. What follows the pairs is cut into
    places of two symbols; a key stands at the first of its place, and its value is asked there. Places are drawn without
    replacement, place `i` (from 1) with a weight of `i ** (power - 1)`: with a small power most gaps are short. All other symbols are
    drawn from the whole alphabet.
    """

    size: int = 64
    pairs: int = 4
    symbols: int = 1024
    power: float = 0.01
    examples: int | None = 100_000

    pooled: ClassVar[bool] = False
    metric = staticmethod(accuracy)

    def __post_init__(self) -> None:
        if self.size % 2 or self.size < 4 * self.pairs or self.pairs < 1:
            raise UserError(
                f"size={self.size}: {self.pairs} pairs, told and asked, need an even number, at least {4 * self.pairs}"
            )
        if self.symbols // 2 - 1 < self.pairs:
            raise UserError(f"symbols={self.symbols}: {self.pairs} different keys need at least {2 * self.pairs + 2}")

    @property
    def length(self) -> int:
        return self.size

    @property
    def chance(self) -> float:
        return 1 / self.pairs  # one of the values that were told

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        half, told = self.symbols // 2, 2 * self.pairs
        keys = 1 + random.choice(half - 1, self.pairs, replace=False)
        values = half + random.choice(self.symbols - half, self.pairs, replace=False)
        space = (self.size - told) // 2
        weights = np.arange(1, space + 1) ** (self.power - 1)
        places = told + 2 * random.choice(space, self.pairs, replace=False, p=weights / weights.sum())
        inputs = random.integers(self.symbols, size=self.size)
        inputs[0:told:2], inputs[1:told:2], inputs[places] = keys, values, keys
        targets = np.full(self.size, IGNORED)
        targets[places] = values
        return inputs.tolist(), targets.tolist()
