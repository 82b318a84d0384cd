"""What `nestling eval horizons` measured: documents read, facts remembered, and costs, by levels and slowest period."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Group

from nestling.report import sections
from nestling.report.curves import legend, looks
from nestling.report.sections import page, section, table
from nestling.report.svg import label, render
from nestling.report.values import NOTHING, mean, size, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Settings = dict[str, Any]
Part = tuple[str, str, Sequence[str], list[list[str]]]

READ = (
    "setting",
    "periods",
    "factor",
    "Python",
    "its second half",
    "less, frozen",
    "prose",
    "its second half",
    "less, frozen",
)
KNOWN = ("setting", "bits", "control", "gain", "right of 10, %", "right of those said, %", "s", "bytes a user")
READ_NOTE = (
    "Documents, each read once by a new user and predicted before it is learnt: {python:,} bytes of Python's standard library, and "
    "{prose:,} of War and Peace with facts in its first quarter, whose bytes do not count. The model was trained on other "
    "English; its attention reaches 256 bytes a block back. Bits a byte; mean ± standard deviation over {seeds} models. Periods in bytes. "
    "The fastest level takes plain steps and all others retain what was seen; one factor multiplies a setting's rates, chosen by "
    "the first model on another document (* the first or last one tried). Less, frozen: of the second half, the frozen model's "
    "bits less the setting's, model by model."
)
KNOWN_NOTE = (
    "{facts} facts (The code of Lobidu is 40735.), each told {times} times in the first quarter of the prose, and asked after "
    "its end apart from it, so that levels alone can know them. Two documents differ in the values alone: bits are those of "
    "the digits of the value that was said, control those of the same digits after the other document, gain the difference; "
    "{questions} questions a model, of facts of its own; five random digits are 16.6 bits. Right of 10: the value is likelier "
    "than nine others, of which the document says none (chance 10). Right of those said: likelier than the values of the "
    "document's other facts (chance {chance:.0f}), which asks for the name, too. s: of the processor, to read the three "
    "documents; bytes a user: what is kept for each, the session apart."
)


def tables(results: dict[str, Any]) -> Group:
    """Two tables."""
    return Group(*(table(title, headings, rows) for title, _, headings, rows in parts(results)))


def parts(results: dict[str, Any]) -> list[Part]:
    """Of each table a title, how the figures came to be, headings and rows."""
    settings, seeds = results["settings"], len(results["seeds"])
    reading = READ_NOTE.format(python=results["python"], prose=results["prose"], seeds=seeds)
    facts = results["facts"]
    recall = KNOWN_NOTE.format(facts=facts, times=results["times"], questions=2 * facts, chance=100 / facts)
    return [
        ("Reading long documents", reading, READ, read(settings)),
        ("Facts told early, and costs", recall, KNOWN, known(settings)),
    ]


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawings = (_positions(results["settings"]), _counts(results["settings"]))
    drawn = [section(*part, drawing) for part, drawing in zip(parts(results), drawings, strict=True)]
    return page(results["title"], results["about"], drawn)


def read(settings: Settings) -> list[list[str]]:
    """A line for each setting: how it read."""
    frozen = settings.get("frozen")
    return [_read(name, met, frozen) for name, met in settings.items()]


def known(settings: Settings) -> list[list[str]]:
    """A line for each setting: what it knew of the facts, and what it cost."""
    return [_known(name, met["runs"]) for name, met in settings.items()]


def gain(run: dict[str, Any]) -> float:
    """Bits that the document saves on a value, against the document that says another."""
    return run["recall"]["control"] - run["recall"]["bits"]


def _read(name: str, met: dict[str, Any], frozen: dict[str, Any] | None) -> list[str]:
    periods = ", ".join(map(str, met["periods"])) or NOTHING
    factor = f"{met['factor']:g}{'*' if met['edge'] else ''}" if met["periods"] else NOTHING
    row = [name, periods, factor]
    for text in ("python", "prose"):
        whole, half = ([run[text][part] for run in met["runs"]] for part in ("bits", "second_half"))
        base = [run[text]["second_half"] for run in frozen["runs"]] if frozen else []
        saved = [b - h for b, h in zip(base, half, strict=True)] if frozen else []
        row += [summary(whole), summary(half), summary(saved)]
    return row


def _known(name: str, runs: list[dict[str, Any]]) -> list[str]:
    recall = [run["recall"] for run in runs]
    return [
        name,
        *(summary([met[key] for met in recall], ".1f") for key in ("bits", "control")),
        summary([gain(run) for run in runs], "+.1f"),
        *(summary([100 * met[key] for met in recall], ".0f") for key in ("right", "among")),
        summary([run["seconds"] for run in runs], ".1f"),
        size(runs[0]["bytes"]),
    ]


def by_slowest(settings: Settings) -> dict[int, dict[int, dict[str, Any]]]:
    """Of the settings that are a number of levels and a slowest period: by the latter, then by the former."""
    found: dict[int, dict[int, dict[str, Any]]] = {}
    for name, met in settings.items():
        if match := re.fullmatch(r"(\d+) levels?, (\d+)", name):
            found.setdefault(int(match[2]), {})[int(match[1])] = met
    return found


def _counts(settings: Settings) -> str:
    """Against the number of levels, a line for each slowest period; as the paper's Figure 7."""
    panels = {
        "Python, bits a byte": lambda run: run["python"]["second_half"],
        "prose, bits a byte": lambda run: run["prose"]["second_half"],
        "facts, bits gained": gain,
    }
    slowest = by_slowest(settings)

    def draw(figure: Figure) -> None:
        every = figure.subplots(1, len(panels))
        for axes, (name, value) in zip(every, panels.items(), strict=True):
            for (period, by_count), look in zip(slowest.items(), looks(len(slowest)), strict=True):
                means = [mean([value(run) for run in met["runs"]]) for met in by_count.values()]
                axes.plot(
                    list(by_count), means, color=look.colour, linestyle=look.line, marker=look.marker,
                    label=label(f"slowest {period:,}"),
                )  # fmt: skip
            axes.set(
                xlabel="levels", ylabel=name, xticks=sorted({n for by_count in slowest.values() for n in by_count})
            )
        legend(figure, every[0])

    return render("levels", "Second halves of the documents, and facts, by the number of levels", draw, 3.6)


def _positions(settings: Settings) -> str:
    """Bits against position, less the frozen model's: a column for each slowest period, a row for each text."""
    slowest = by_slowest(settings)
    frozen = settings.get("frozen")

    def draw(figure: Figure) -> None:
        every = figure.subplots(2, len(slowest), sharex=True, sharey="row", squeeze=False)
        for column, (period, by_count) in zip(every.T, slowest.items(), strict=True):
            lines = {f"{n} level{'s' * (n > 1)}": met for n, met in by_count.items()}
            lines |= {name: met for name, met in settings.items() if name.endswith("alone")}
            for axes, text in zip(column, ("python", "prose"), strict=True):
                _curves(axes, lines, frozen, text)
            column[0].set_title(f"slowest {period:,}", loc="left")
            column[1].set_xlabel("bytes read")
        for axes, text in zip(every[:, 0], ("Python", "prose"), strict=True):
            axes.set_ylabel(f"{text}: bits a byte" + (" less frozen" if frozen else ""))
        legend(figure, every[0, 0])

    return render("positions", "Bits a byte by position in the document", draw, 5.6) if slowest else ""


def _curves(axes: Axes, lines: Settings, frozen: dict[str, Any] | None, text: str) -> None:
    """A line a setting, the mean over the models, each bin drawn at its end."""
    for (name, met), look in zip(lines.items(), looks(len(lines)), strict=True):
        curves = [run[text]["by_position"] for run in met["runs"]]
        base = [run[text]["by_position"] for run in frozen["runs"]] if frozen else [[0.0] * len(c) for c in curves]
        differences = [[b - f for b, f in zip(*pair, strict=True)] for pair in zip(curves, base, strict=True)]
        means = [fmean(values) for values in zip(*differences, strict=True)]
        axes.plot(
            met["runs"][0][text]["ends"], means, color=look.colour, linestyle=look.line, marker=look.marker, markersize=3,
            label=label(name),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
