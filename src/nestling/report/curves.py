"""Curves over tokens: thinned by averaging neighbours, drawn as a mean line with a band of one standard deviation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from nestling.report.schema import Results
from nestling.report.svg import MUTED, SERIES, label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 48  # along a curve: more is noise to the eye and weight in the file
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (8, 2)))
MARKERS = ("o", "^", "D", "v", "p")


class Look(NamedTuple):
    """How one learner, model or level is drawn: line and marker differ as well, so that colour is never alone."""

    colour: str
    line: Any = "-"
    marker: str = "o"


FROZEN = (Look(MUTED, ":", "s"), Look(MUTED, (0, (6, 3, 1, 3)), "X"), Look(MUTED, (0, (1, 3)), "P"))


def learner_looks(results: Results) -> list[Look]:
    """Grey for the frozen, a colour for each that learns: the same in every figure."""
    frozen, learning = itertools.cycle(FROZEN), iter(looks(len(results["learners"])))
    return [next(frozen if learner["kind"] == "frozen" else learning) for learner in results["learners"]]


def looks(count: int) -> list[Look]:
    """A colour, a line and a marker for each."""
    return [Look(SERIES[i % len(SERIES)], LINES[i % len(LINES)], MARKERS[i % len(MARKERS)]) for i in range(count)]


def block_size(length: int) -> int:
    """How many neighbours are averaged into one point."""
    return max(1, math.ceil(length / MOST_POINTS))


def blocks(values: Sequence[float], size: int) -> numpy.ndarray:
    """Means of consecutive blocks; the last block may be shorter."""
    row = numpy.array(values, dtype=float)  # a null becomes NaN, and leaves a gap
    starts = numpy.arange(0, len(row), size)
    return numpy.add.reduceat(row, starts) / numpy.diff(numpy.append(starts, len(row)))


def band(axes: Axes, tokens: Sequence[float], curves: Sequence[Sequence[float]], name: str, look: Look) -> None:
    """The mean over seeds, and one sample standard deviation to either side where there are several seeds."""
    size = block_size(len(tokens))
    at = blocks(tokens, size)
    rows = numpy.stack([blocks(curve, size) for curve in curves])  # [seeds, points]
    middle = rows.mean(axis=0)
    axes.plot(at, middle, color=look.colour, linestyle=look.line, label=label(name))
    if len(rows) > 1:
        spread = rows.std(axis=0, ddof=1)
        axes.fill_between(at, middle - spread, middle + spread, color=look.colour, alpha=0.15, linewidth=0)


def difference(curve: Results, base: Results) -> Results:
    """One curve less another over the same tokens, seed by seed."""
    if curve["tokens"] != base["tokens"]:
        raise ValueError("Two streams of the same model stand at different tokens; read both in the same chunks.")
    rows = [[_less(a, b) for a, b in zip(*seed, strict=True)] for seed in zip(curve["bpb"], base["bpb"], strict=True)]
    return {"tokens": curve["tokens"], "bpb": rows}


def _less(a: float | None, b: float | None) -> float:
    return math.nan if a is None or b is None else a - b


def averaged(lengths: Sequence[int]) -> str:
    """What the axis says about the averaging, so that a smooth curve is not taken for a quiet one."""
    sizes = sorted({block_size(length) for length in lengths})
    if sizes == [1]:
        return ""
    return f" (each point averages {' or '.join(str(size) for size in sizes)} neighbours)"


def token_axis(axes: Axes, text: str) -> None:
    """Tokens along the bottom, as 50k or 2M."""
    from matplotlib.ticker import EngFormatter

    axes.set_xlabel(text)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0.01)


def legend(figure: Figure, axes: Axes) -> None:
    """Above the drawing, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=2.6, columnspacing=1.6)
