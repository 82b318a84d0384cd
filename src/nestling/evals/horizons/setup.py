"""The settings that are compared, and how much is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2

from nestling.evals.adaptation.setup import SIZES as ADAPTATION
from nestling.evals.demo import setup as demo
from nestling.evals.demo.setup import FAST, SLOW
from nestling.levels import Level

FASTEST = 64  # tokens: the period of the fastest of several levels
FROZEN, ALONE = "frozen", f"{FASTEST} alone"


@dataclass(frozen=True)
class Size:
    """How much of everything, in bytes (a token is a byte).

    models: how they are trained. python, prose, tuning: of the documents. facts: told in the prose, each `times` times.
    settings: those compared, by name; None for all. factors: of all rates, tried for each setting. further: how many more
    may be tried while the best is the first or last one. calibration: of the training text, shown to the levels that retain
    what was seen.
    """

    models: demo.Size
    python: int = 16_384
    prose: int = 10_240
    tuning: int = 12_288
    facts: int = 4
    times: int = 6
    settings: tuple[str, ...] | None = None
    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    further: int = 2
    calibration: int = 8_192


def periods(levels: int, slowest: int) -> tuple[int, ...]:
    """From `FASTEST` to the slowest in equal ratios, rounded to powers of two; one level is the slowest."""
    if levels == 1:
        return (slowest,)
    octaves = log2(slowest / FASTEST) / (levels - 1)
    return tuple(FASTEST * 2 ** round(octaves * i) for i in range(levels))


# periods by name: nothing learns; the fastest level without any other; one to four levels
SETTINGS: dict[str, tuple[int, ...]] = {FROZEN: (), ALONE: (FASTEST,)} | {
    f"{count} level{'s' * (count > 1)}, {slowest}": periods(count, slowest)
    for slowest in (512, 2048, 8192)
    for count in (1, 2, 3, 4)
}


def levels(given: Sequence[int], factor: float) -> list[Level]:
    """The demonstration's fast level for the fastest period; its slow one, the step shared, for all others.

    A rate belongs to an update and not to a token: one level alone reads best at about the same rate at any period. So
    periods leave the rates as they are, and `factor`, which is tuned for each setting, multiplies all of them.
    """
    slow = [period for period in given if period > FASTEST]
    fast = [replace(FAST, period=period, lr=factor * FAST.lr) for period in given if period <= FASTEST]
    return fast + [replace(SLOW, period=period, lr=factor * SLOW.lr / len(slow)) for period in slow]


SIZES = {
    "quick": Size(
        ADAPTATION["quick"].models,
        python=4_096,
        prose=4_096,
        tuning=3_072,
        facts=2,
        settings=(FROZEN, ALONE, "1 level, 512", "2 levels, 512", "4 levels, 512"),
        factors=(0.5, 1.0),
        further=0,
        calibration=1_024,
    ),
    "default": Size(ADAPTATION["default"].models),
}
