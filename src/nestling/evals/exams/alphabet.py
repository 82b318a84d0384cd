"""Texts as symbols."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Protocol

from nestling.errors import UserError

QUOTES = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "—": "-", "–": "-", "…": "..."})


class Alphabet(Protocol):
    """size: how many symbols it has. encode: a text as symbols; that of two texts one after the other is that of both."""

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Raises UserError for a character that it lacks."""
        ...


@dataclass(frozen=True)
class Bytes:
    """The symbols of `nestling.train.byte_tokenizer`, so that models of bytes can be examined."""

    size: int = 384

    def encode(self, text: str) -> list[int]:
        return [3 + byte for byte in text.encode()]


@dataclass(frozen=True)
class Characters:
    """A symbol for each of these characters, and for no other."""

    characters: str

    @property
    def size(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        if missing := sorted(set(text) - set(self.characters)):
            raise UserError(
                f"the alphabet lacks {', '.join(map(repr, missing))}, which the exam writes; add what is missing"
            )
        return [self.characters.index(character) for character in text]


def plain(text: str) -> str:
    """Without accents and typographic signs: ASCII, a byte a character."""
    return unicodedata.normalize("NFKD", text.translate(QUOTES)).encode("ascii", "ignore").decode()
