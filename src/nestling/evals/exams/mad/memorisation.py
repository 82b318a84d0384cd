"""Memorisation (MAD's task 5): what a key means is the same in every example, and only weights can hold it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.metrics import macro_accuracy
from nestling.evals.exams.task import IGNORED, Example, Part


@dataclass(frozen=True)
class Memorisation:
    """Keys, each followed by a sign, the last symbol, at which its value is asked; no example says it.

    The first half of the other symbols are keys; a permutation, which `map_seed` fixes, gives each a value of the second half.
    """

    symbols: int = 256
    size: int = 32
    map_seed: int = 12_345
    examples: int | None = 256

    pooled: ClassVar[bool] = False
    metric = staticmethod(macro_accuracy)

    def __post_init__(self) -> None:
        if self.size % 2 or self.size < 2:
            raise UserError(f"size={self.size}: memorisation needs an even number of symbols, at least 2")
        if self.symbols < 3:
            raise UserError(f"symbols={self.symbols}: a key, a value and a sign are at least 3")

    @property
    def length(self) -> int:
        return self.size

    @cached_property
    def values(self) -> list[int]:
        """The value of every key."""
        keys = (self.symbols - 1) // 2
        permuted = np.random.default_rng(self.map_seed).permutation(self.symbols - 1 - keys)
        return (keys + permuted[:keys]).tolist()

    @property
    def chance(self) -> float:
        return 1 / len(self.values)

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        keys = random.integers(len(self.values), size=self.size // 2).tolist()
        sign = self.symbols - 1
        return [s for key in keys for s in (key, sign)], [t for key in keys for t in (IGNORED, self.values[key])]
