"""The studies beside the comparison of optimisers: the paper's winding valley, and orthogonal tasks in sequence."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy

from nestling.report.curves import legend, looks
from nestling.report.svg import MUTED, label, render
from nestling.report.values import NOTHING, number, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Study:
    """title, note: in words. headings, rows: a table. figure: draws it as SVG."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: list[list[str]]
    figure: Callable[[], str] | None = None


def studies(results: dict[str, Any]) -> list[Study]:
    """What there is, in order."""
    found = results.get("studies", {})
    out = [_psi(found["psi"])] if "psi" in found else []
    out += [_orthogonal(title, rows) for title, rows in found.get("orthogonal", {}).items()]
    return out + ([_editing(found["editing"])] if "editing" in found else [])


def _psi(found: dict[str, Any]) -> Study:
    rows = [
        [
            line["name"],
            f"{line['lr']:.2g}",
            NOTHING if line["arrival"] is None else f"{line['arrival']:g}",
            f"{line['arrived']}",
            f"{line['earlier']} / {line['later']}",
            NOTHING if line["ratio"] is None else number(line["ratio"], ".2f"),
        ]
        for line in found["lines"]
    ]
    return Study(
        "psi: who reaches the bottom of a winding valley first",
        f"r^2 + k (r - th + a sin(w r))^2 from (-3.5, 2), k = {found['k']:g}, a = {found['a']:g}, w = {found['w']:g}: the middle of "
        f"{found['curves']} curves, over which the last three columns count (earlier or later than momentum; steps as a ratio to "
        "its). Each optimiser at its own best rate for each curve, the worst of that rate and its two neighbours; memories of 0.9.",
        ("optimiser", "rate", "steps", "arrived", "earlier / later", "ratio"),
        rows,
        lambda: _valley(found),
    )


def _valley(found: dict[str, Any]) -> str:
    """The curve's contours, and the paths over them: the paper's figure 4."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        r, theta = numpy.meshgrid(numpy.linspace(-4.2, 2.5, 160), numpy.linspace(-4.2, 3.2, 160))
        height = r**2 + found["k"] * (r - theta + found["a"] * numpy.sin(found["w"] * r)) ** 2
        axes.contour(r, theta, numpy.log(height + 0.05), levels=14, colors=MUTED, linewidths=0.4)
        shown = [
            line for line in found["lines"] if line["name"] in ("SGD, momentum", "Adam") or "delta" in line["name"]
        ]
        for line, look in zip(shown, looks(len(shown)), strict=True):
            path = numpy.array(line["path"])
            axes.plot(*path.T, color=look.colour, linestyle=look.line, linewidth=1.2, label=label(line["name"]))
        axes.set(xlim=(-4.2, 2.5), ylim=(-4.2, 3.2), xlabel="r", ylabel="th")
        axes.grid(False)
        legend(figure, axes)

    return render(
        "psi", "Paths over the curve psi, each at its best rate, until they stay at the minimum", draw, height=5.0
    )


def _orthogonal(title: str, rows: list[dict[str, Any]]) -> Study:
    table = [
        [
            row["family"],
            f"{row['memory']}: {'all' if row['length'] is None else format(row['length'], 'g')}",
            f"{row['lr']:g}",
            *(summary(row[name]) for name in ("learning", "forgetting", "final")),
        ]
        for row in rows
    ]
    return Study(
        f"orthogonal tasks in sequence: {title}",
        "Loss as a share of the targets' variance: after learning a task, its rise until the end (forgetting; negative where a "
        "task is still being learnt when the next has begun), and of all tasks at the end. The rate is chosen for each "
        "length of memory by the last, on two seeds of their own; mean ± standard deviation over three others.",
        ("optimiser", "memory", "rate", "after learning", "forgetting", "all, at the end"),
        table,
        lambda: _lengths(title, rows),
    )


def _lengths(title: str, rows: list[dict[str, Any]]) -> str:
    """Forgetting, and all tasks' loss at the end, against the length of the memory."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 2, sharey=True)
        families = [list(part) for _, part in groupby(rows, key=lambda row: (row["family"], row["memory"]))]
        for part, look in zip(families, looks(len(families)), strict=True):
            for ax, name in zip(panels, ("forgetting", "final"), strict=True):
                _line(ax, part, name, look)
        for ax, text in zip(panels, ("forgetting", "loss of all tasks at the end"), strict=True):
            ax.set(xscale="log", xlabel="length of the memory", title=text)
        legend(figure, panels[0])

    name = re.sub(r"\W+", "-", f"orthogonal {title}")
    return render(name, f"Forgetting and final loss against memory: {title}", draw, height=4.0)


def _line(axes: Axes, part: list[dict[str, Any]], name: str, look: Any) -> None:
    longest = max(row["length"] for row in part if row["length"] is not None)
    at = [10 * longest if row["length"] is None else row["length"] for row in part]  # forever: at the right end
    means = [statistics.fmean(row[name]) for row in part]
    spread = [statistics.stdev(row[name]) for row in part]
    text = label(f"{part[0]['family']}: {part[0]['memory']}")
    axes.errorbar(
        at, means, spread, color=look.colour, linestyle=look.line, marker=look.marker, markersize=4, label=text
    )


def _editing(rows: list[dict[str, Any]]) -> Study:
    def percent(values: list[float]) -> str:
        return summary([100 * value for value in values], ".1f")

    table = [
        [
            row["name"],
            f"{row['lr']:g}",
            percent(row["changed"]),
            *(percent(row[f"lost{which}"]) for which in ("", "_unseen")),
            *(summary(row[f"worse{which}"]) for which in ("", "_unseen")),
        ]
        for row in rows
    ]
    return Study(
        "editing: other answers to 6 of the 80 facts that a network knows",
        "Steps until all 6 are right; then how many of the other facts lost their answers, and by how many nats they are worse: of "
        "the 54 that were shown before, and of 20 that were not. The rate is chosen on two seeds of its own by what the facts "
        "shown lost; mean ± standard deviation over three others.",
        ("optimiser", "rate", "changed, %", "lost, %", "lost, not shown", "worse, nats", "worse, not shown"),
        table,
    )
