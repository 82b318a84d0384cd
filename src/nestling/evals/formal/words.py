"""Words as tensors: batches to learn from, and every length of a bin to be judged by."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from torch import Tensor

from nestling.evals.formal.machines import Machine, Word

BINS = ((2, 50), (51, 100), (101, 200))  # the lengths learnt, and two ranges of longer words
IGNORED = -100  # the answer where a word is over


def tensors(machine: Machine, words: list[Word]) -> tuple[Tensor, Tensor]:
    """Symbols and answers `[B, L]` int64, padded on the right: what a causal model says of a word does not change."""
    size = max(map(len, words))
    answers = [machine.answers(word) for word in words]
    symbols = torch.tensor([(*word, *[0] * (size - len(word))) for word in words])
    return symbols, torch.tensor([(*answer, *[IGNORED] * (size - len(answer))) for answer in answers])


def batches(machine: Machine, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of words of the first bin, of all lengths alike. A batch mixes them: where a language has one word
    of each length, it is of many words all the same.
    """
    random, lengths = Random(seed), machine.lengths(*BINS[0])
    while True:
        yield tensors(machine, [machine.word(random.choice(lengths), random) for _ in range(size)])


def judged(machine: Machine, low: int, high: int, each: int, seed: str) -> list[Word]:
    """`each` words of every length from `low` to `high`; fewer where chance gave the same word twice."""
    random = Random(seed)
    drawn = [machine.word(length, random) for length in machine.lengths(low, high) for _ in range(each)]
    return list(dict.fromkeys(drawn))
