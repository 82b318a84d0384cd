"""In-context recall, and with noise between the pairs (MAD's tasks 1 and 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.metrics import macro_accuracy
from nestling.evals.exams.task import Example, Part, next_symbols


@dataclass(frozen=True)
class Recall:
    """Pairs of a key and its value, which is drawn when the key comes for the first time; each later value is asked.

    `size / 2` pairs. Of `symbols`, the last `noise_symbols` are noise; the first half of the others are keys, the second
    values. A pair is noise, two symbols of it, with probability `noise`; the last pair is one of a key that was there before.
    """

    symbols: int = 16
    size: int = 128
    noise_symbols: int = 0
    noise: float = 0.0
    examples: int | None = 12_800

    pooled: ClassVar[bool] = False
    metric = staticmethod(macro_accuracy)

    def __post_init__(self) -> None:
        if self.size % 2 or self.size < 4:
            raise UserError(f"size={self.size}: recall needs an even number of symbols, at least 4")
        if self.symbols - self.noise_symbols < 2:
            raise UserError(
                f"symbols={self.symbols}, of them {self.noise_symbols} noise: a key and a value are missing"
            )
        if not 0 <= self.noise < 1 or (self.noise and not self.noise_symbols):
            raise UserError(
                f"noise={self.noise}, noise_symbols={self.noise_symbols}: noise is from 0 to 1, and needs symbols"
            )

    @property
    def length(self) -> int:
        return self.size - 1

    @property
    def keys(self) -> int:
        """Keys are the symbols below this one."""
        return (self.symbols - self.noise_symbols) // 2

    @property
    def chance(self) -> float:
        return 1 / (self.symbols - self.noise_symbols - self.keys)

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        pairs, meaningful = self.size // 2, self.symbols - self.noise_symbols
        noisy = random.random(pairs) < self.noise
        noisy[random.integers(pairs - 1)] = False  # one pair at least, for the last to ask
        noisy[-1] = False
        values: dict[int, int] = {}
        sequence, asked = [], []
        for at in range(pairs):
            if noisy[at]:
                sequence += random.integers(meaningful, self.symbols, 2).tolist()
                asked += [False, False]
                continue
            key = int(random.choice(list(values)) if at == pairs - 1 else random.integers(self.keys))
            asked += [False, key in values]
            sequence += [key, values.setdefault(key, int(random.integers(self.keys, meaningful)))]
        return next_symbols(sequence, asked, part)
