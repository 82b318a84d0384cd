"""Needles in a haystack, as RULER has them (Hsieh et al. 2024, arXiv 2404.06654), at the length of a model of bytes."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from nestling.errors import UserError
from nestling.evals.exams.alphabet import Alphabet, Bytes
from nestling.evals.exams.book import sentences
from nestling.evals.exams.metrics import exact
from nestling.evals.exams.task import Example, Part, next_symbols

Kind = Literal["words", "numbers", "uuids"]
REPEATED = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
ADJECTIVES = [
    "able", "black", "bold", "brave", "brief", "bright", "broad", "calm", "cheap", "clean", "clear", "cold", "cool",
    "curly", "dark", "deep", "dull", "eager", "early", "easy", "fair", "false", "fast", "fine", "firm", "fresh",
    "full", "gentle", "glad", "grand", "great", "green", "happy", "hard", "heavy", "high", "huge", "idle", "jolly",
    "keen",
]  # fmt: skip
NOUNS = [
    "anchor", "apple", "arrow", "badge", "basin", "beach", "bell", "bird", "boat", "book", "bridge", "brush", "cabin",
    "cake", "candle", "chair", "circle", "cloud", "coin", "corner", "desk", "door", "dream", "drum", "engine", "farm",
    "field", "flower", "forest", "garden", "glass", "hammer", "harbor", "house", "island", "jacket", "kettle",
    "ladder", "lamp", "leaf",
]  # fmt: skip


@dataclass(frozen=True)
class Needles:
    """Sentences that say a value of a key, hidden in a text, then keys asked for; all values of those are the answer.

    size: of prompt and answer, in symbols; the text is as long as it can be, and its first sentence begins where that fits.
    hay: "repeat" (one line again and again), "book", or "needles" (of other keys).
    keys, values, queries: kinds of key, values of each, kinds that are asked; there are `max(keys, queries)` kinds.
    key, value: what they are: words (an adjective and a noun), numbers (of 7 digits), or uuids.
    depth: of the first needle, from 0 to 1; None: any of 40 depths in the book, any line elsewhere, as RULER has it.
    """

    size: int = 1024
    hay: Literal["repeat", "book", "needles"] = "book"
    keys: int = 1
    values: int = 1
    queries: int = 1
    key: Kind = "words"
    value: Kind = "numbers"
    depth: float | None = None
    alphabet: Alphabet = field(default_factory=Bytes)
    examples: int | None = None

    pooled: ClassVar[bool] = False
    metric = staticmethod(exact)

    def __post_init__(self) -> None:
        if self.depth is not None and (not 0 <= self.depth <= 1 or self.kinds * self.values > 1):
            raise UserError(f"depth={self.depth}: one single needle lies at a depth from 0 to 1")
        self.draw(np.random.default_rng(0), "training")  # what is too short, or cannot be written, is told now

    @property
    def symbols(self) -> int:
        return self.alphabet.size

    @property
    def length(self) -> int:
        return self.size - 1

    @property
    def chance(self) -> float:
        return 0.0

    @property
    def kinds(self) -> int:
        """How many keys have needles."""
        return max(self.keys, self.queries)

    def draw(self, random: np.random.Generator, part: Part) -> Example:
        prompt, answers = self.text(random, part)
        sequence, asked = self.alphabet.encode(prompt), [False] * len(prompt)
        for number, answer in enumerate(answers):
            for text, counts in ((", " if number else " ", False), (answer, True)):
                sequence += self.alphabet.encode(text)
                asked += [counts] * len(text)
        return next_symbols(sequence, asked, part)

    def text(self, random: np.random.Generator, part: Part) -> tuple[str, list[str]]:
        """The prompt and the answers, in the order of the keys asked and, of one key, of its values."""
        told = {
            made(self.key, random): [made(self.value, random) for _ in range(self.values)] for _ in range(self.kinds)
        }
        needles = [self.needle(key, value) for key, values in told.items() for value in values]
        random.shuffle(needles)
        asked = [list(told)[at] for at in random.choice(len(told), self.queries, replace=False)]
        answers = [value for key in asked for value in told[key]]
        before, after = self.frame(asked)
        room = self.size - len(before + after) - sum(2 + len(answer) for answer in answers)
        room += len(answers) > 0  # the first answer has one blank in front of it, the others two signs
        room -= sum(1 + len(needle) for needle in needles)
        if room < 1:
            raise UserError(
                f"size={self.size}: these needles, the question and its answer need {self.size + 1 - room} symbols"
            )
        hay, blank = self.straw(room, random, part, set(told)), " " if self.hay == "book" else "\n"
        places = self.places(len(hay), len(needles), random)
        for place, needle in sorted(zip(places, needles, strict=True), reverse=True):
            hay.insert(place, needle)
        return before + blank.join(hay) + after, answers

    def needle(self, key: str, value: str) -> str:
        return f"One of the special magic {self.value} for {key} is: {value}."

    def frame(self, asked: list[str]) -> tuple[str, str]:
        """What stands before the text, and the question after it, in RULER's words."""
        what = ", ".join(asked[:-1]) + ", and " + asked[-1] if len(asked) > 1 else asked[0]
        one = self.queries * self.values == 1
        some, kind, are, every = ("A", self.value[:-1], "is", "") if one else ("Some", self.value, "are", " all")
        return (
            f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {kind} afterwards.\n",
            f"\nWhat {are}{every} the special magic {kind} for {what} mentioned in the provided text? "
            f"The special magic {kind} for {what} mentioned in the provided text {are}",
        )

    def straw(self, room: int, random: np.random.Generator, part: Part, taken: set[str]) -> list[str]:
        """Sentences with `room` symbols, what stands between them counted; the first lacks its beginning. None is of a key that
        is taken.
        """
        lines, left = [], room
        book = sentences(part) if self.hay == "book" else ()
        at = int(random.integers(len(book))) if book else 0
        while left > 0:
            line = REPEATED
            if self.hay == "needles":
                key = made(self.key, random)
                if key in taken:
                    continue
                line = self.needle(key, made(self.value, random))
            elif book:
                line = book[at % len(book)]
                at -= 1
            lines.append(line[-left:])
            left -= len(lines[-1]) + 1
        if left == 0:  # there is no sentence of no symbols: the first one takes the place of what would stand behind it
            lines[-1] = " " + lines[-1]
        return lines[::-1]

    def places(self, lines: int, needles: int, random: np.random.Generator) -> list[int]:
        """In front of which lines the needles stand."""
        if self.depth is not None:
            return [int(lines * self.depth)]
        if self.hay == "book":
            depths = np.linspace(0, 100, 40).round()
            return [int(lines * depth / 100) for depth in random.choice(depths, needles, replace=False)]
        return random.choice(lines, needles, replace=needles > lines).tolist()


def made(kind: Kind, random: np.random.Generator) -> str:
    """A key or a value."""
    if kind == "numbers":
        return str(random.integers(10**6, 10**7))
    if kind == "uuids":
        return str(uuid.UUID(bytes=random.bytes(16), version=4))
    return f"{random.choice(ADJECTIVES)}-{random.choice(NOUNS)}"


def string_match(found: str, answers: list[str]) -> float:
    """RULER's score of a text: the share of the answers that it contains, whatever their order and capitals."""
    return sum(answer.lower() in found.lower() for answer in answers) / len(answers)


def ruler(size: int, **more: object) -> dict[str, Needles]:
    """RULER's needles by name, of `size` symbols."""
    given = {
        "S-NIAH-1": {"hay": "repeat"},
        "S-NIAH-2": {"hay": "book"},
        "S-NIAH-3": {"hay": "book", "value": "uuids"},
        "MK-NIAH-1": {"hay": "book", "keys": 4},
        "MK-NIAH-2": {"hay": "needles"},
        "MK-NIAH-3": {"hay": "needles", "key": "uuids", "value": "uuids"},
        "MV-NIAH": {"hay": "book", "values": 4},
        "MQ-NIAH": {"hay": "book", "queries": 4},
    }
    return {name: Needles(size, **chosen, **more) for name, chosen in given.items()}  # pyright: ignore[reportArgumentType]
