"""What an exam is: examples drawn from a seed, with targets where something is asked, and a metric."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # the target where nothing is asked
Part = Literal["training", "validation", "test"]
Example = tuple[list[int], list[int]]  # inputs and targets, of one length


class Task(Protocol):
    """One kind of question; its parameters are the fields of a frozen dataclass.

    symbols: size of the alphabet. length: symbols that a model reads. examples: how many different ones there are to learn
    from; None is no end of them. pooled: whether every answer comes out of the state after the last symbol, and of no other.
    chance: what guessing among the possible answers is worth. metric: `metric(found, targets)`, a number from 0 to 1.
    """

    pooled: ClassVar[bool]

    @property
    def symbols(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def examples(self) -> int | None: ...
    @property
    def chance(self) -> float: ...
    @property
    def metric(self) -> Callable[[Tensor, Tensor], float]: ...

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        """One example. In training targets may stand everywhere, else only where they count; always where the answer is given."""
        ...


@dataclass(frozen=True)
class Exam:
    """lessons: tasks to learn, one after the other, with an equal share of the steps; the last one is judged.
    further: other tasks to be judged by, of the same symbols, without learning them.
    """

    lessons: tuple[Task, ...]
    further: Mapping[str, Task] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What is judged, and what the learning rate is chosen by."""
        return self.lessons[-1]


@dataclass(frozen=True)
class Batch:
    """inputs, targets: `[B, L]` int64; a target of IGNORED asks nothing."""

    inputs: Tensor
    targets: Tensor

    def split(self, size: int) -> Iterator[Batch]:
        """In parts of `size` examples."""
        for inputs, targets in zip(self.inputs.split(size), self.targets.split(size), strict=True):
            yield Batch(inputs, targets)


def drawn(task: Task, count: int, part: Part) -> Batch:
    """`count` examples to choose or to be judged by. Parts have nothing to do with each other."""
    random = seeded(part)
    return together([task.draw(random, part) for _ in range(count)])


def batches(task: Task, size: int, seed: int) -> Iterator[Batch]:
    """Endless batches to learn from: of fresh examples, or, of a limited number, every one once before any comes again."""
    known: dict[int, Example] = {}
    coming = itertools.count() if task.examples is None else _again_and_again(task.examples, seed)
    while True:
        found = []
        for number in itertools.islice(coming, size):
            example = known.get(number) or task.draw(seeded(f"training, {seed}, {number}"), "training")
            if task.examples is not None:
                known[number] = example
            found.append(example)
        yield together(found)


def _again_and_again(count: int, seed: int) -> Iterator[int]:
    """Numbers below `count`, in another order each time."""
    order = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=order).tolist()


def seeded(word: str) -> np.random.Generator:
    """What is drawn for this word, and for no other."""
    return np.random.default_rng(list(word.encode()))


def together(examples: Sequence[Example]) -> Batch:
    """Examples of one length as a batch."""
    inputs, targets = zip(*examples, strict=True)
    return Batch(torch.tensor(inputs), torch.tensor(targets))


def next_symbols(sequence: list[int], asked: list[bool], part: Part) -> Example:
    """An example of prediction: the model reads all but the last symbol, and says the next one at each; those that are `asked`
    count.
    """
    targets = [s if a or part == "training" else IGNORED for s, a in zip(sequence, asked, strict=True)]
    return sequence[:-1], targets[1:]
