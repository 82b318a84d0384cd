"""What `nestling levels --response` measured: the gains of levels over frequency, beside their closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.console import Group
from torch import Tensor

from nestling.levels import Level
from nestling.levels.response import Gain, closed_form, cutoff, poles
from nestling.report.curves import Look, legend, looks
from nestling.report.sections import table
from nestling.report.svg import MUTED, label, render
from nestling.report.values import NOTHING, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = ("what an update adds", "what the level holds")
LINE = 1500  # points
ROWS = 10  # frequencies in the table


def tables(levels: Sequence[Level], frequencies: Tensor, measured: Sequence[Gain]) -> Group:
    """Cutoffs and agreement, a row a level; then both gains, measured and in closed form, a row a frequency."""
    headings = ["level", "cutoff of steps", "cutoff of values", "largest difference, %"]
    rows = [[name(one), *cutoffs(one), _difference(one, frequencies, gain)] for one, gain in _pairs(levels, measured)]
    title = "Cutoffs (-3 dB), cycles a token; differences in % of a level's largest gain"
    return Group(table(title, headings, rows), *(_gains(i, levels, frequencies, measured) for i in range(len(PANELS))))


def _gains(panel: int, levels: Sequence[Level], frequencies: Tensor, measured: Sequence[Gain]) -> Group:
    some = torch.linspace(0, len(frequencies) - 1, min(ROWS, len(frequencies))).round().long().tolist()
    rows = [[f"{frequencies[i].item():.3g}"] for i in some]
    for level, gain in _pairs(levels, measured):
        expected = closed_form(level, frequencies)[panel].abs().tolist()
        found = gain[panel].abs().tolist()
        for row, i in zip(rows, some, strict=True):
            row.append(f"{_number(found[i])} / {expected[i]:.3g}")
    headings = ["cycles a token", *(name(level) for level in levels)]
    return Group(table(f"Gain of {PANELS[panel]}: measured / closed form", headings, rows))


def cutoffs(level: Level) -> list[str]:
    """Those of its steps and of its values; nothing where a level hears everything."""
    return [f"{f:.3g}" if math.isfinite(f) else NOTHING for f in cutoff(level)]


def name(level: Level) -> str:
    """A level in a few words: what its response depends on."""
    momentum, decay = poles(level)
    parts = [f"period {level.period}", f"lr {level.lr:g}"]
    parts += [f"momentum {momentum:g}"] if momentum else []
    return ", ".join(parts + ([f"decay {decay:g}"] if decay < 1 else []))


def figure(levels: Sequence[Level], frequencies: Tensor, measured: Sequence[Gain]) -> str:
    """Lines in closed form, dots as measured, a vertical stroke at each cutoff; needs matplotlib."""

    def draw(page: Figure) -> None:
        panels = page.subplots(1, len(PANELS), squeeze=False)[0]
        for place, axes in enumerate(panels):
            for (level, gain), look in zip(_pairs(levels, measured), looks(len(levels)), strict=True):
                _draw(axes, place, level, frequencies, gain, look)
            _frame(axes, place, levels, frequencies)
        legend(page, panels[0])

    return render("response", "Gain of each level over frequency, measured and in closed form", draw, 4.4)


def _draw(axes: Axes, panel: int, level: Level, frequencies: Tensor, gain: Gain, look: Look) -> None:
    low, high = (math.log10(f) for f in (frequencies.min().item(), frequencies.max().item()))
    line = torch.logspace(low, high, LINE, dtype=torch.float64)
    axes.plot(line.tolist(), closed_form(level, line)[panel].abs().tolist(), color=look.colour, linewidth=0.6)
    dots = {"marker": look.marker, "markersize": 3.5, "linestyle": "none", "label": label(name(level))}
    axes.plot(frequencies.tolist(), gain[panel].abs().tolist(), color=look.colour, **dots)
    at = cutoff(level)[panel]
    if 0 < at < math.inf:
        peak = closed_form(level, torch.tensor([at]))[panel].abs().item()
        axes.plot([at, at], [peak / 2, peak * 2], color=look.colour, linewidth=2.4)


def _frame(axes: Axes, panel: int, levels: Sequence[Level], frequencies: Tensor) -> None:
    """Down to a thousandth of the smallest gain towards 0: what is below is the zeros of the mean."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    gains = [closed_form(level, frequencies)[panel].abs().max().item() for level in levels]
    moving = [gain for gain in gains if gain > 0]
    if moving:
        axes.set_ylim(min(moving) / 1e3, max(moving) * 2)
    axes.set_xlabel("frequency of the gradient, cycles a token")
    axes.set_title(f"gain of {PANELS[panel]}", loc="left", color=MUTED)


def difference(level: Level, frequencies: Tensor, gain: Gain) -> float:
    """The largest of what was measured of both gains to their closed form, over the largest of the gain; NaN of nothing.

    Not over the gain at each frequency: of the zeros of the mean there would be rounding over rounding.
    """
    found = []
    for measured, expected in zip(gain, closed_form(level, frequencies), strict=True):
        gaps, largest = (measured - expected).abs(), expected.abs().max().item()
        gaps = gaps[~measured.isnan()] / (largest or 1.0)  # a level with lr=0 has no gain
        found += [gaps.max().item()] if len(gaps) else []
    return max(found, default=math.nan)


def _difference(level: Level, frequencies: Tensor, gain: Gain) -> str:
    found = difference(level, frequencies, gain)
    return NOTHING if math.isnan(found) else number(100 * found, ".1e")


def _pairs(levels: Sequence[Level], measured: Sequence[Gain]) -> list[tuple[Level, Gain]]:
    return list(zip(levels, measured, strict=True))


def _number(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.3g}"
