"""Who reads: levels that learn, a context that holds the end of what was read, or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nestling.continual import Learner
from nestling.evals.languages.documents import Document
from nestling.evals.languages.words import LINE, VOCABULARY, lines

LONGEST = 12  # morphemes of an answer: the longest sentence has 9


@dataclass
class Student:
    """A learner's user who has read nothing yet.

    window: tokens of what was read last that stand before every question: learning in context. 0 leaves the levels alone.
    learns: whether its levels learn from what is read; one that does not learns in context only.
    """

    learner: Learner
    user: str
    window: int
    learns: bool = True
    tail: list[str] = field(default_factory=list)

    def read(self, document: Document) -> None:
        text = lines(document.text())
        if self.learns:
            self.learner.observe(text, self.user)
        self.tail = [*self.tail, *text.split()][-self.window :] if self.window else []

    def translate(self, document: Document, sources: Sequence[list[str]]) -> list[list[str]]:
        return [self._answer(document.question(source)) for source in sources]

    def _answer(self, question: str) -> list[str]:
        prompt = " ".join([*self.tail, question])
        end = VOCABULARY.index(LINE)
        options = {"max_new_tokens": LONGEST, "eos_token_id": end, "pad_token_id": end}
        return self.learner.generate(prompt, self.user, **options).split()
