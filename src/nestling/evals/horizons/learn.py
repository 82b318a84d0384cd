"""One run: every document read by a user of its own, and the facts asked from memory alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nestling.continual.baselines import Frozen
from nestling.evals.adaptation.readers import Following, Learning, Reader, learning
from nestling.evals.demo.measures import BITS, bits
from nestling.evals.horizons.documents import DIGITS, Document, Documents, sentence
from nestling.evals.horizons.setup import levels
from nestling.models import HopeForCausalLM

FIRST = 256  # bytes of the first bin of positions; every further one ends where twice as much was read


def readers(model: HopeForCausalLM, periods: tuple[int, ...], factor: float, sample: Tensor) -> Callable[[], Reader]:
    """Something that makes new readers, none of which has read anything but, where it retains, the sample."""
    if not periods:
        return lambda: Following(model, Frozen(), sample)
    learner = learning(model, levels(periods, factor), sample).learner
    return lambda: Learning(learner, user=f"reader {len(learner.users())}")


def run(new_reader: Callable[[], Reader], given: Documents) -> dict[str, Any]:
    """Bits a byte by position, of Python and of the prose around the facts, and what is known of the facts at the end.

    seconds: of the processor, to read `bytes_read`; bytes: of state for one user, at the end.
    """
    found, seconds = [], 0.0
    for document in (given.python, *given.prose):
        reader, begun = new_reader(), time.process_time()
        losses = reader.observe(document.ids)
        seconds += time.process_time() - begun
        found.append((document, reader, losses))
    (_, _, python), *prose = found
    return {
        "python": curve(python, given.python.plain),
        "prose": curve(torch.stack([losses for *_, losses in prose]).mean(0), given.prose[0].plain),
        "recall": recalled([known(reader, document) for document, reader, _ in prose]),
        "seconds": seconds,
        "bytes_read": sum(len(document.ids) for document, *_ in found),
        "bytes": found[0][1].own_bytes(),
    }


def curve(losses: Tensor, plain: Tensor) -> dict[str, Any]:
    """Mean bits a byte of the whole, of its second half, and of bins that end at `ends`. `losses[i]` is that of byte `i + 1`,
    and only plain bytes count.
    """
    counted, losses = plain[1:], losses.double()

    def between(start: int, end: int) -> float:
        part = slice(max(start - 1, 0), end - 1)
        return bits(losses[part][counted[part]])

    cuts, length = ends(len(plain)), len(plain)
    return {
        "bits": between(0, length),
        "second_half": between(length // 2, length),
        "ends": cuts,
        "by_position": [between(start, end) for start, end in zip((0, *cuts), cuts, strict=False)],
    }


def ends(length: int) -> list[int]:
    """Of the bins of positions."""
    out = [FIRST]
    while out[-1] < length:
        out.append(2 * out[-1])
    return [*out[:-1], length]


def known(reader: Reader, document: Document) -> list[dict[str, list[float]]]:
    """For each fact the bits of all its choices' digits, and of the values that the document says of the other facts."""
    return [
        {
            "choices": [asked(reader, fact.name, value) for value in fact.choices],
            "elsewhere": [
                asked(reader, fact.name, other.choices[document.said]) for other in document.facts if other != fact
            ],
        }
        for fact in document.facts
    ]


def asked(reader: Reader, name: str, value: str) -> float:
    """Bits of the value's digits where the question is read apart from any document."""
    return reader.evaluate(sentence(name, value))[-1 - DIGITS : -1].sum().item() * BITS


def recalled(pair: list[list[dict[str, list[float]]]]) -> dict[str, float]:
    """What two documents that differ in the facts' values alone have taught of them.

    bits: of the values that were said. control: of the same values after the other document. right, among: shares of
    questions whose value is likeliest of all its choices, and likeliest of all values that the document says.
    """
    own, control, right, among = [], [], [], []
    for said, facts in enumerate(pair):
        for fact, other in zip(facts, pair[1 - said], strict=True):
            value = fact["choices"][said]
            own.append(value)
            control.append(other["choices"][said])
            right.append(value == min(fact["choices"]))
            among.append(all(value < elsewhere for elsewhere in fact["elsewhere"]))
    count = len(own)
    return {
        "bits": sum(own) / count,
        "control": sum(control) / count,
        "right": sum(right) / count,
        "among": sum(among) / count,
    }
