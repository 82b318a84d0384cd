"""What the backbone is trained on: documents of languages that are never asked about, as rows of tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.evals.languages.documents import document
from nestling.evals.languages.language import EVERY
from nestling.evals.languages.words import LINE, NAMES, NUMBERS, lines

FIRST = 1_000_000  # seeds of languages from here on are for training alone
APART = 1_000_000_000  # between the seeds of the languages of a row
PAIR, SHORTEST = 6, 12  # tokens of a line of a dictionary, and of a sentence at least


@dataclass(frozen=True)
class Lesson:
    """steps: of training. batch: rows a step. length: tokens of a row. words: nouns, verbs and adjectives that each of its
    languages has. languages: of a row. sentences: whether it has any; without them its dictionary is said again and again.
    """

    steps: int
    batch: int
    length: int
    words: tuple[int, int, int]
    languages: int = 1
    sentences: bool = True


def row(seed: int, lesson: Lesson) -> list[int]:
    """The first tokens of the documents of new languages: what each says of words, and then their sentences, mixed."""
    draw = random.Random(f"lesson {seed}")
    count = -(-lesson.length // SHORTEST)
    given = [
        document(name, seed + at * APART, count, 1, EVERY.few(*lesson.words, draw))
        for at, name in enumerate(draw.sample(NAMES, lesson.languages))
    ]
    told = [line for one in given for line in one.lines([*one.dictionary, *one.grammar])]
    said = [line for one in given for line in one.lines(one.parallel)]
    if lesson.sentences:
        told += draw.sample(said, count)
    else:
        told = draw.choices([line for one in given for line in one.lines(one.dictionary)], k=lesson.length // PAIR + 1)
    return [NUMBERS[token] for token in lines("".join(told)).split()[: lesson.length]]


def rows(first: int, lesson: Lesson) -> Tensor:
    """`[batch, length]` int64, of the seeds from `first` on."""
    return torch.tensor([row(first + at, lesson) for at in range(lesson.batch)])


def answers(ids: Tensor) -> Tensor:
    """Whether each token of `ids [.., L]`, whole lines but for the last, is part of an answer, the line's end included. Bool."""
    equals, ends = ids == NUMBERS["="], ids == NUMBERS[LINE]
    opened = equals.cumsum(-1) - equals.long()  # "=" before this token
    closed = ends.cumsum(-1) - ends.long()
    return opened > closed
