"""What `nestling eval sleep` measured: what is kept of the new and of the old, by the night, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group

from nestling.report import sections
from nestling.report.curves import legend, looks
from nestling.report.sections import page, section, table
from nestling.report.svg import label, render
from nestling.report.values import NOTHING, mean, percent, size, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = dict[str, Any]
Part = tuple[str, str, Sequence[str], list[list[str]]]

HEADINGS = ("night", "tokens", "later code", "%", "prose", "%", "stored", "s")
NOTE = (
    "A learner of two levels, the fast one of which resets when a context ends, has read English prose, as its model was "
    "trained on, and {read:,} bytes of Python's standard library. Then a night, and its context ends. Bits a byte of later "
    "code and of held-out prose, mean ± standard deviation over {seeds} models, and the change in % against the model before "
    "it read (paired). Tokens: of new texts, and as many of old ones, times passes over them. Stored texts are pieces of what "
    "was read and of the prose that calibrated the levels; dreams are what the learner writes, awake and without its fast "
    "level. Stored: what has to be kept for it, a token a byte. s: of the processor; reading the code took {seconds}."
)


def tables(results: dict[str, Any]) -> Group:
    """One table."""
    return Group(*(table(title, headings, rows) for title, _, headings, rows in parts(results)))


def parts(results: dict[str, Any]) -> list[Part]:
    """A title, how the figures came to be, headings and rows."""
    seconds = summary([run["awake"]["seconds"] for run in results["runs"]], ".0f")
    note = NOTE.format(read=results["read"], seeds=len(results["seeds"]), seconds=seconds)
    return [("What is kept", note, HEADINGS, rows(results))]


def markdown(results: dict[str, Any]) -> str:
    """The table as a Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    return page(results["title"], results["about"], [section(*parts(results)[0], _frontier(results))])


def rows(results: dict[str, Any]) -> list[list[str]]:
    """Before and after the stream, then a line a night."""
    frozen, awake = ([run[when] for run in results["runs"]] for when in ("frozen", "awake"))
    lines = [_row("before it read", frozen, frozen), _row("awake, after it", awake, frozen)]
    for night, met in by_night(results):
        times = f" x {night['passes']}" if night["passes"] > 1 else ""
        tokens = f"{night['tokens']:,}{times}" if night["tokens"] else NOTHING
        seconds = summary([m["seconds"] for m in met], ".0f")
        lines.append(_row(night["name"], met, frozen, tokens, size(night["stored"]), seconds))
    return lines


def by_night(results: dict[str, Any]) -> list[tuple[dict[str, Any], list[Run]]]:
    """Each night, and what was met after it, seed by seed."""
    return [(night, [run["nights"][i] for run in results["runs"]]) for i, night in enumerate(results["nights"])]


def _row(name: str, met: list[Run], frozen: list[Run], tokens: str = NOTHING, *costs: str) -> list[str]:
    return [name, tokens, *_change(met, frozen, "later"), *_change(met, frozen, "old"), *(costs or (NOTHING, NOTHING))]


def _change(met: list[Run], frozen: list[Run], text: str) -> list[str]:
    after, before = ([run[text] for run in runs] for runs in (met, frozen))
    return [summary(after), summary(percent(after, before), "+.1f")]


def _frontier(results: dict[str, Any]) -> str:
    """What is kept of the new against what is lost of the old; a line a source of texts, through its lengths."""
    frozen = [run["frozen"] for run in results["runs"]]
    lines: dict[str, list[list[Run]]] = {"awake, after it": [[run["awake"] for run in results["runs"]]]}
    for night, met in by_night(results):
        lines.setdefault(night["name"], []).append(met)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, every), look in zip(lines.items(), looks(len(lines)), strict=True):
            points = [
                [mean(percent([m[text] for m in met], [f[text] for f in frozen])) for met in every]
                for text in ("old", "later")
            ]
            axes.plot(*points, color=look.colour, linestyle=look.line, marker=look.marker, label=label(name))  # pyright: ignore[reportArgumentType]
        axes.set(xlabel="prose: change of bits, %", ylabel="later code: change of bits, %")
        legend(figure, axes)

    return render("frontier", "What is kept of the new against what is lost of the old, by the night", draw, 4.2)
