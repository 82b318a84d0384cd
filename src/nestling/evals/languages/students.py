"""Who reads: levels that learn, a method that moves all weights, a context that holds what was read last, or several of these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nestling.continual import Learner
from nestling.continual.baselines import Follower
from nestling.evals.languages.documents import Document
from nestling.evals.languages.words import LINE, VOCABULARY, ids, lines
from nestling.levels import FastWeights
from nestling.models import HopeCache, LearningModel

LONGEST = 12  # morphemes of an answer: the longest sentence has 9


@dataclass
class Context:
    """What was read last, which stands before every question: learning in context. window: tokens of it; 0 is no context."""

    window: int
    tail: list[str] = field(default_factory=list)

    def read(self, document: Document) -> None:
        """Once more, after all that was read before."""
        self.tail = [*self.tail, *lines(document.text()).split()][-self.window :] if self.window else []

    @torch.no_grad()
    def answers(
        self, model: LearningModel, memory: FastWeights | None, document: Document, sources: Sequence[list[str]]
    ) -> list[list[str]]:
        """English morphemes, the likeliest one after the other, of every question after the same context."""
        cache = HopeCache("off", memory)
        if self.tail:
            model(ids(" ".join(self.tail))[None], past_key_values=cache, use_cache=True)
        return [greedy(model, cache.copy(), ids(document.question(source))) for source in sources]


def greedy(model: LearningModel, cache: HopeCache, prompt: Tensor) -> list[str]:
    """The likeliest tokens after `prompt [L]`, up to the end of the line."""
    read, found = prompt[None], []
    for _ in range(LONGEST):
        read = model(read, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        token = VOCABULARY[int(read)]
        if token == LINE:
            break
        found.append(token)
    return found


@dataclass(frozen=True)
class Course:
    """How what learns reads a document: all of its lines, `lines` a text in a random order, each a context of its own; and again,
    `passes` in all. As one text most of it could be told from what stands before, and would not be learnt.
    """

    passes: int
    lines: int = 4

    def texts(self, document: Document) -> Iterator[Tensor]:
        """Token ids of each text, one after the other."""
        for seed in range(self.passes):
            yield from map(ids, document.pieces(self.lines, seed))


NONE = Course(0)  # learning in context only


@dataclass
class Student:
    """A learner's user who has read nothing yet."""

    learner: Learner
    user: str
    context: Context
    course: Course = NONE

    def read(self, document: Document) -> None:
        for text in self.course.texts(document):
            self.learner.observe(text, self.user)
            self.learner.end_context(self.user)
        self.context.read(document)

    def translate(self, document: Document, sources: Sequence[list[str]]) -> list[list[str]]:
        return self.context.answers(self.learner.model, self.learner.memory(self.user), document, sources)

    def bare(self) -> Student:
        """The same without a context."""
        return replace(self, context=Context(0))

    def own_bytes(self) -> int:
        """What the levels keep for it."""
        return self.learner.memory_bytes(self.user)


@dataclass
class Tuned:
    """A model all of whose weights a method moves."""

    follower: Follower
    context: Context
    course: Course = NONE

    def read(self, document: Document) -> None:
        for text in self.course.texts(document):
            self.follower.observe(text)
            self.follower.end_context()
        self.context.read(document)

    def translate(self, document: Document, sources: Sequence[list[str]]) -> list[list[str]]:
        return self.context.answers(self.follower.model, None, document, sources)

    def bare(self) -> Tuned:
        """The same without a context."""
        return replace(self, context=Context(0))

    def own_bytes(self) -> int:
        """What the method keeps for it."""
        return self.follower.own_bytes()
