"""Documents: Python source; prose in whose first quarter facts are told; and others, to tune by."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from nestling.evals.horizons.setup import Size
from nestling.train import byte_tokenizer, encode, python_source
from nestling.train.corpora import war_and_peace

CHOICES = 10  # values a fact is chosen among
DIGITS = 5
LATER = 32_768  # characters of the book before the part to tune by


@dataclass(frozen=True)
class Fact:
    """name: made up. choices: values it could have, of which a document says one."""

    name: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Document:
    """ids: `[L]`. plain: `[L]` bool, False where a fact is told. said: which of its choices every fact has here."""

    ids: Tensor
    plain: Tensor
    facts: tuple[Fact, ...] = ()
    said: int = 0


@dataclass(frozen=True)
class Documents:
    """python: of the standard library's modules. prose: two that differ in the values of their facts alone."""

    python: Document
    prose: tuple[Document, Document]


def sentence(name: str, value: str) -> Tensor:
    """A fact, as it is told and as it is asked."""
    return tokens(f"\n\nThe code of {name} is {value}.")


def documents(size: Size, seed: int) -> Documents:
    """Those to measure by; the facts depend on the seed."""
    prose = tokens(war_and_peace(size.prose))[: size.prose]
    facts = made_up(size.facts, seed)
    python = tokens(python_source(size.python))[: size.python]
    first, second = (telling(prose, facts, said, size.times) for said in (0, 1))
    return Documents(plain(python), (first, second))


def to_tune(size: Size) -> Document:
    """Half prose from a later part of the book, half source from the standard library's packages."""
    half = size.tuning // 2
    prose = tokens(war_and_peace(LATER + half)[LATER:])[:half]
    return plain(torch.cat([prose, tokens(python_source(half, "asyncio/*.py"))[:half]]))


def made_up(count: int, seed: int) -> tuple[Fact, ...]:
    """Facts with names of three syllables; no two choices of any are the same."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    names = ["".join(draw.sample(syllables, 3)).capitalize() for _ in range(count)]
    values = [f"{value:0{DIGITS}}" for value in draw.sample(range(10**DIGITS), count * CHOICES)]
    return tuple(Fact(name, tuple(values[i::count])) for i, name in enumerate(names))


def telling(text: Tensor, facts: tuple[Fact, ...], said: int, times: int) -> Document:
    """A text with its end given up for facts in its first quarter, in turn, at equal distances."""
    told = [sentence(fact.name, fact.choices[said]) for _ in range(times) for fact in facts]
    gap = len(text) // 4 // len(told)
    parts, is_plain, taken = [], [], 0
    for fact in told:
        between = gap - len(fact)
        if between < 1:
            raise ValueError(f"{len(told)} sentences do not fit the first quarter of {len(text)} bytes; tell fewer")
        parts += [text[taken : taken + between], fact]
        is_plain += [torch.ones(between), torch.zeros(len(fact))]
        taken += between
    rest = text[taken : len(text) - sum(map(len, told))]
    return Document(torch.cat([*parts, rest]), torch.cat([*is_plain, torch.ones(len(rest))]).bool(), facts, said)


def plain(ids: Tensor) -> Document:
    """Without facts."""
    return Document(ids, torch.ones_like(ids, dtype=torch.bool))


def tokens(text: str) -> Tensor:
    return encode(byte_tokenizer(), text)
