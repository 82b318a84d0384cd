"""BABILong (Kuratov et al. 2024, arXiv 2406.10149): facts of bAbI (Weston et al. 2015) hidden in a book, at any length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.alphabet import Alphabet, Bytes
from nestling.evals.exams.book import sentences
from nestling.evals.exams.metrics import exact
from nestling.evals.exams.task import Example, Part, next_symbols
from nestling.train.corpora import babi

PLACES = frozenset({"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"})
LABELS = {number: PLACES for number in (1, 2, 3, 4)} | {
    5: frozenset({"bill", "fred", "jeff", "mary", "apple", "football", "milk"})
}
SHORTEST = 10  # symbols of a sentence of the book


@dataclass(frozen=True)
class Story:
    """One question of bAbI, and the facts told before it."""

    facts: tuple[str, ...]
    question: str
    answer: str


@cache
def stories(number: int, part: Part) -> tuple[Story, ...]:
    """The questions of a task of bAbI; the last tenth of its training file is for validation."""
    found = parsed(babi(number, "test" if part == "test" else "train"))
    cut = len(found) if part == "test" else len(found) * 9 // 10
    return found[cut:] if part == "validation" else found[:cut]


def parsed(text: str) -> tuple[Story, ...]:
    """Stories of a file of bAbI: each question with all the facts of its story up to it, and with no other question."""
    found: list[Story] = []
    facts: list[str] = []
    for line in text.splitlines():
        number, said = line.split(" ", 1)
        if number == "1":
            facts = []
        if "\t" in said:
            question, answer, *_ = said.split("\t")
            found.append(Story(tuple(facts), question.strip(), answer))
        else:
            facts.append(said.strip())
    return tuple(found)


@dataclass(frozen=True)
class Babilong:
    """Facts of a story of bAbI among sentences of a book, a question, and its answer.

    number: of the task of bAbI, 1 to 5. size: of facts and book together, in symbols; 0 is the facts alone. alphabet: of text.

    Facts stand in their order, each at a place between sentences that is drawn uniformly, with replacement; sentences of fewer than
    10 symbols are left out, the last one is cut where the size is reached, and a book that ends begins again. To be examples of
    one length, they are padded at their beginning with blanks, to `size`, or to the longest story, and the room of a question.
    """

    number: int = 1
    size: int = 0
    alphabet: Alphabet = field(default_factory=Bytes)
    examples: int | None = None

    pooled: ClassVar[bool] = False
    metric = staticmethod(exact)

    def __post_init__(self) -> None:
        if self.number not in LABELS:
            raise UserError(f"qa{self.number} is not one of BABILong's tasks here; choose 1 to {max(LABELS)}")
        if self.size < 0 or 0 < self.size < self.longest[0]:
            raise UserError(
                f"size={self.size}: the facts of qa{self.number} need up to {self.longest[0]} symbols; or 0 for them alone"
            )

    @property
    def symbols(self) -> int:
        return self.alphabet.size

    @property
    def longest(self) -> tuple[int, int]:
        """Symbols of the longest facts, and of the longest question with its answer."""
        return _longest(self.number, self.alphabet)

    @property
    def length(self) -> int:
        return max(self.size, self.longest[0]) + self.longest[1] - 1

    @property
    def chance(self) -> float:
        return 1 / len(LABELS[self.number])

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        chosen = stories(self.number, part)
        story = chosen[int(random.integers(len(chosen)))]
        context = [symbol for piece in self.pieces(story, random, part) for symbol in piece]
        question, answer = asked(story, self.alphabet)
        sequence = [*context, *question, *answer]
        padding = self.length + 1 - len(sequence)
        (blank,) = self.alphabet.encode(" ")
        counts = [False] * (padding + len(context) + len(question)) + [True] * len(answer)
        return next_symbols([blank] * padding + sequence, counts, part)

    def pieces(self, story: Story, random: np.random.Generator, part: Part) -> Iterator[list[int]]:
        """The context as it would be read, sentence by sentence: at any size, no more than one of them is held."""
        facts = [self.alphabet.encode(f"{fact} ") for fact in story.facts]
        room = max(0, self.size - sum(map(len, facts)))
        book = sentences(part) if room else ()
        start = int(random.integers(len(book))) if book else 0
        count = sum(1 for _ in background(book, start, room, self.alphabet))
        places = sorted(random.integers(count + 1, size=len(facts)).tolist(), reverse=True)
        waiting = facts[::-1]
        for at, sentence in enumerate(background(book, start, room, self.alphabet)):
            while places and places[-1] == at:
                places.pop()
                yield waiting.pop()
            yield sentence
        yield from waiting[::-1]


def background(book: tuple[str, ...], start: int, room: int, alphabet: Alphabet) -> Iterator[list[int]]:
    """Sentences from `start` on, of `room` symbols together."""
    at = start
    while room > 0:
        sentence = alphabet.encode(f"{book[at % len(book)]} ")
        at += 1
        if len(sentence) > SHORTEST:
            yield sentence[:room]
            room -= len(sentence)


def asked(story: Story, alphabet: Alphabet) -> tuple[list[int], list[int]]:
    """A question, and its answer with a full stop."""
    return alphabet.encode(f"Question: {story.question} Answer: "), alphabet.encode(f"{story.answer}.")


@cache
def _longest(number: int, alphabet: Alphabet) -> tuple[int, int]:
    every = [story for part in ("training", "validation", "test") for story in stories(number, part)]
    facts = max(sum(len(alphabet.encode(f"{fact} ")) for fact in story.facts) for story in every)
    return facts, max(sum(map(len, asked(story, alphabet))) for story in every)


def right(answer: str, found: str, question: str, number: int) -> bool:
    """The official score of a text: in what comes before its first full stop and is no new example or question, the answer is
    the only label of the task, those of the question left out.
    """
    said = re.split(r"\.|<context>|<example>", found.lower())[0]
    labels = {label for label in LABELS[number] if label in said and label not in question.lower()}
    return labels == {answer.lower()}
