"""What is trained on and what is read: documents of several sorts, two of which are never trained on."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nestling.train import byte_tokenizer, encode, english_prose, tiny_shakespeare, wikitext2

ARTICLE = re.compile(r"(?m)^ = (?!=)")  # where an article of WikiText begins
LONGEST = 4  # a document is cut after so many times the length that is read of it, so that none outweighs the others


@dataclass(frozen=True)
class Sort:
    """Token ids of one sort of text. train: `[N]`, or None where it is never trained on. valid, test: documents
    `[D, L]` to tune and to judge by, never trained on, those to tune by half as long; valid is None where train is.
    """

    train: Tensor | None
    valid: Tensor | None
    test: Tensor


@cache  # a process runs many settings on the same texts
def sorts(length: int, valid: int, test: int) -> dict[str, Sort]:
    """By name. length: bytes of a document as it is read. valid, test: how many of each sort (of the reference fewer to judge by).

    Raises:
        UserError: a public data set that cannot be found; the message says what to do.
    """
    articles, modules = ARTICLE.split(wikitext2("train"))[1:], files(sysconfig.get_path("stdlib"), "*.py")
    include = Path(torch.__file__).parent / "include"
    headers = files(include / "c10", "**/*.h") + files(include / "ATen/core", "**/*.h")
    plays = tiny_shakespeare()
    scenes = [plays[start : start + length] for start in range(0, len(plays), length)]
    return {
        "reference": reference(length, valid, test),
        "articles": split(spread(articles, length, 4 * (valid + test)), length, valid),
        "Python": split(spread(modules, length, 4 * (valid + test)), length, valid),
        "C++": Sort(None, None, pieces(spread(headers, length, test), length)),
        "plays": Sort(None, None, pieces(spread(scenes, length, test), length)),
    }


def reference(length: int, valid: int, test: int) -> Sort:
    """The prose of the demonstration: what the models were trained on already, and the last tenth, in pieces."""
    prose = encode(byte_tokenizer(), english_prose())
    cut = int(0.9 * len(prose))
    held = prose[cut:][: len(prose[cut:]) // length * length].view(-1, length)
    return Sort(prose[:cut], held[:valid, : length // 2], held[valid : valid + test])


def files(folder: str | Path, pattern: str) -> list[str]:
    """The texts of a folder's files, by name."""
    return [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(Path(folder).glob(pattern))]


def spread(texts: Iterable[str], length: int, count: int) -> list[Tensor]:
    """`count` of the texts that are long enough, evenly spread over them, `[length .. LONGEST * length]` each."""
    found = [text for text in texts if len(text) >= length]
    chosen = found[:: max(1, len(found) // count)][:count]
    return [encode(byte_tokenizer(), text[: LONGEST * length])[: LONGEST * length] for text in chosen]


def split(documents: Sequence[Tensor], length: int, valid: int) -> Sort:
    """Every fourth document is held out, the first `valid` of them to tune by; the others are trained on."""
    held = pieces(documents[::4], length)
    train = torch.cat([document for place, document in enumerate(documents) if place % 4])
    return Sort(train, held[:valid, : length // 2], held[valid:])


def pieces(documents: Sequence[Tensor], length: int) -> Tensor:
    """The beginnings `[D, length]`."""
    return torch.stack([document[:length] for document in documents])
