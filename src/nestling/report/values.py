"""Numbers as text: always with their spread, and never hiding a run that failed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

NOTHING = "–"
NOT_FINITE = "not finite"


def summary(values: Sequence[float | None], spec: str = ".3f") -> str:
    """Mean ± sd over seeds, with the sample standard deviation; of one seed just the value.

    One seed that is not finite makes the whole entry "not finite": a mean over the seeds that survived would flatter.
    """
    numbers = finite(values)
    if not values:
        return NOTHING
    if len(numbers) < len(values):
        return NOT_FINITE
    mean = number(statistics.fmean(numbers), spec)
    if len(numbers) == 1:
        return mean
    return f"{mean} ± {number(statistics.stdev(numbers), spec.removeprefix('+'))}"


def number(value: float, spec: str) -> str:
    """Formatted with a true minus sign, and no sign on what rounds to zero."""
    text = format(value, spec)
    if not any(digit in text for digit in "123456789"):
        text = text.lstrip("+-")
    return text if "e" in text else text.replace("-", "−")


def percent(after: Sequence[float | None], before: Sequence[float | None]) -> list[float]:
    """Relative change in %, seed by seed: seeds share their data order, so pairing them removes what they share."""
    return [_change(a, b) for a, b in zip(after, before, strict=True)]


def _change(after: float | None, before: float | None) -> float:
    if after is None or not before:
        return math.nan
    return 100.0 * (after / before - 1.0)


def finite(values: Sequence[float | None]) -> list[float]:
    """The values that are numbers; JSON writes a diverged run as null or NaN."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def mean(values: Sequence[float | None]) -> float:
    """The mean over seeds, NaN when any seed failed."""
    numbers = finite(values)
    return statistics.fmean(numbers) if values and len(numbers) == len(values) else math.nan


def size(count: int) -> str:
    """A number of bytes for people: 1.5 MB, decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"
