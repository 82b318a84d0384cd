"""The book that needles and facts are hidden in."""

from __future__ import annotations

import re
from functools import cache

from nestling.evals.exams.alphabet import plain
from nestling.evals.exams.task import Part
from nestling.train.corpora import war_and_peace

PARTS: dict[Part, tuple[float, float]] = {"training": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


@cache
def sentences(part: Part) -> tuple[str, ...]:
    """Of a part of War and Peace: no sentence of the test was read in training. In ASCII, white space as single blanks.

    A sentence ends with a full stop, an exclamation or a question mark, and what closes quotes and brackets (RULER and BABILong
    use models of nltk for this). Raises UserError where the book is not found.
    """
    text = " ".join(plain(war_and_peace(10**9)).split())
    low, high = (int(share * len(text)) for share in PARTS[part])
    return tuple(re.split(r"(?<=[.!?]) |(?<=[.!?][\"')]) ", text[low:high])[1:-1])
