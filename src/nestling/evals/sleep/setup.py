"""The nights that are compared, and over how much text."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.evals.adaptation.setup import SIZES as ADAPTATION
from nestling.evals.adaptation.setup import Size as Adaptation

WAKE, STORED, DREAMT, HALF = "wake only", "stored", "dreamt", "new stored, old dreamt"
PIECE = 1024  # tokens of a stored text, and of a dream
BEGIN = "\n"  # what a dream begins with: the models were not trained on a token for the beginning


@dataclass(frozen=True)
class Night:
    """new, old: where the texts come from, "stored" or "dreamt"; None: no sleep, the context ends.

    tokens: of each kind. passes: over them.
    """

    name: str
    new: str | None = None
    old: str | None = None
    tokens: int = 0
    passes: int = 1

    def stored(self) -> int:
        """Tokens that have to be kept for it."""
        return self.tokens * [self.new, self.old].count(STORED)


@dataclass(frozen=True)
class Size:
    """adaptation: models, and what they read awake. lengths: of a night, tokens of each kind and passes over them."""

    adaptation: Adaptation
    lengths: tuple[tuple[int, int], ...]

    def nights(self) -> list[Night]:
        """Without a sleep; then every source of texts at every length."""
        sources = {STORED: (STORED, STORED), DREAMT: (DREAMT, DREAMT), HALF: (STORED, DREAMT)}
        slept = [Night(name, *pair, *length) for name, pair in sources.items() for length in self.lengths]
        return [Night(WAKE), *slept]


SIZES = {
    "quick": Size(ADAPTATION["quick"], ((1_024, 1),)),
    "default": Size(ADAPTATION["default"], ((4_096, 1), (16_384, 1), (16_384, 4))),
}
