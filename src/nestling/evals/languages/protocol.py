"""Alone and in sequence: what a learner translates of each language, and what is left when others were read after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Protocol, TypeVar

from nestling.errors import UserError
from nestling.evals.languages.documents import Document
from nestling.evals.languages.language import english, together
from nestling.evals.languages.score import chrf


class Reader(Protocol):
    """Who learns languages."""

    def read(self, document: Document) -> None:
        """Learn from its text, once, after all that was read before."""
        ...

    def translate(self, document: Document, sources: Sequence[list[str]]) -> list[list[str]]:
        """English morphemes of sentences in its language; nothing is learnt."""
        ...


R = TypeVar("R", bound=Reader)
T = TypeVar("T")


def judged(reader: Reader, document: Document) -> float:
    """chrF of the sentences that are not in the document."""
    found = reader.translate(document, [document.language.say(one) for one in document.asked])
    return chrf([together(answer) for answer in found], [together(english(one)) for one in document.asked])


def alone(new_reader: Callable[[], R], documents: Sequence[Document], judge: Callable[[R, Document], T]) -> list[T]:
    """What `judge` says of every language, each read by a reader who has read no other."""
    check(documents)
    found = []
    for document in documents:
        reader = new_reader()
        reader.read(document)
        found.append(judge(reader, document))
    return found


def in_sequence(reader: R, documents: Sequence[Document], judge: Callable[[R, Document], T]) -> list[list[T]]:
    """After each document what `judge` says of all languages read so far: row i has i + 1 of them."""
    check(documents)
    rows = []
    for count, document in enumerate(documents, start=1):
        reader.read(document)
        rows.append([judge(reader, one) for one in documents[:count]])
    return rows


def drop(single: Sequence[float], rows: Sequence[Sequence[float]]) -> float:
    """By how much the mean over the languages is lower at the end of the sequence than alone, in points of chrF."""
    return fmean(single) - fmean(rows[-1])


def check(documents: Sequence[Document]) -> None:
    """Raise UserError unless there are languages to read, each under a name of its own."""
    names = [document.name for document in documents]
    if not names:
        raise UserError("there is no language to learn; give at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"the name {', '.join(twice)} stands for two languages; give each a name of its own")
