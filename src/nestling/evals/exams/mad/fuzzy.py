"""Fuzzy in-context recall (MAD's task 2): keys and values are of one to three symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.metrics import macro_accuracy
from nestling.evals.exams.task import Example, Part, next_symbols


@dataclass(frozen=True)
class FuzzyRecall:
    """As `Recall`, of keys and values that are several different symbols in a row.

    The last symbol is padding; the first half of the others make keys, the second values. A value has 1 to `longest` symbols;
    so has a key to learn from, and a key that is judged has `longest`. Each example ends with a pair that was there before. It
    is padded at its beginning to `size + 1` symbols.
    """

    symbols: int = 16
    size: int = 128
    longest: int = 3
    examples: int | None = 12_800

    pooled: ClassVar[bool] = False
    metric = staticmethod(macro_accuracy)

    def __post_init__(self) -> None:
        if self.size < 6 * self.longest:
            raise UserError(
                f"size={self.size}: pairs of up to {2 * self.longest} symbols need at least {6 * self.longest} of them"
            )
        if (self.symbols - 1) // 2 < self.longest:
            raise UserError(
                f"symbols={self.symbols}: keys of {self.longest} different ones need {2 * self.longest + 1}"
            )

    @property
    def length(self) -> int:
        return self.size

    @property
    def keys(self) -> int:
        """Keys are made of the symbols below this one."""
        return (self.symbols - 1) // 2

    @property
    def chance(self) -> float:
        return 1 / (self.symbols - 1 - self.keys)

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        def motif(low: int, high: int, size: int | None) -> tuple[int, ...]:
            size = size or int(random.integers(1, self.longest + 1))
            return tuple((low + random.permutation(high - low)[:size]).tolist())

        def pair() -> tuple[tuple[int, ...], tuple[int, ...]]:
            return motif(0, self.keys, None if part == "training" else self.longest), motif(
                self.keys, self.symbols - 1, None
            )

        probe, answer = pair()
        room = self.size - len(probe + answer) - 2 * self.longest  # the last pair before the probe begins before it
        # told at a place that is always reached: mad-lab's can lie behind the last pair, and then nothing tells the answer
        told = int(random.integers(max(1, room - 2 * self.longest)))
        values = {probe: answer}
        sequence: list[int] = []
        asked: list[bool] = []
        seen: set[tuple[int, ...]] = set()

        def add(key: tuple[int, ...], value: tuple[int, ...]) -> None:
            sequence.extend(key + value)
            asked.extend([False] * len(key) + [key in seen] * len(value))
            seen.add(key)

        while len(sequence) < room:
            key, value = pair()
            if len(sequence) >= told and probe not in seen:
                key = probe
            add(key, values.setdefault(key, value))
        add(probe, answer)
        padding = self.size + 1 - len(sequence)
        return next_symbols([self.symbols - 1] * padding + sequence, [False] * padding + asked, part)
