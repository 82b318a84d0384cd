"""One run: languages read alone and in sequence, by readers that are asked with their context and without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from nestling.evals.languages.documents import Document
from nestling.evals.languages.methods import NewReader
from nestling.evals.languages.protocol import alone, drop, in_sequence, judged
from nestling.evals.languages.students import Student, Tuned

Run = dict[str, Any]
ASKED = ("context", "memory")  # what a reader answers from: both, or what moved alone


def run(new_reader: NewReader, documents: Sequence[Document]) -> Run:
    """chrF by what is answered from: of each language alone, and after each document of all that were read so far; two or more.

    seconds: of the processor, for all of it. bytes: that one reader keeps, its context apart, after the last document.
    """
    begun = time.process_time()
    reader = new_reader()
    rows = in_sequence(reader, documents, both)
    single = [rows[0][0], *alone(new_reader, documents[1:], both)]  # the first language is alone until the second
    return {
        **{
            kind: {"alone": [met[kind] for met in single], "rows": [[met[kind] for met in row] for row in rows]}
            for kind in ASKED
        },
        "seconds": time.process_time() - begun,
        "bytes": reader.own_bytes(),
    }


def both(reader: Student | Tuned, document: Document) -> dict[str, float]:
    """With what was read last before each question, and without."""
    return dict(zip(ASKED, (judged(reader, document), judged(reader.bare(), document)), strict=True))


def at_the_end(met: dict[str, Any]) -> float:
    """Mean over all languages after the last one."""
    return fmean(met["rows"][-1])


def lost(met: dict[str, Any]) -> float:
    """From alone to in sequence."""
    return drop(met["alone"], met["rows"])


def worth(met: Run) -> float:
    """What settings are chosen by: languages alone and at the end of the sequence, with a context and without, alike."""
    return fmean(value for kind in ASKED for value in (fmean(met[kind]["alone"]), at_the_end(met[kind])))
