"""What `nestling eval meta-learning` measured: who reads new documents best, learning and not, for the same compute."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Group

from nestling.report import sections
from nestling.report.curves import legend, looks
from nestling.report.sections import page, section, table
from nestling.report.svg import label, render
from nestling.report.values import NOTHING, number, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = list[dict[str, Any]]
Part = tuple[str, str, Sequence[str], list[list[str]]]

BASELINE = "plain"
HOW = {"on": "learning", "off": "no learning"}
COST = ("arm", "outer rate", "inner rate, training", "at test", "bytes", "steps", "passes", "s")
COST_NOTE = (
    "All arms go on from the same weights, trained plainly on English prose, and read the same three sorts of text ({trained}) "
    "in windows of {length:,} bytes; where an arm learns while it reads, the MLPs move every {period} bytes. Passes: 1 is one byte "
    "forward through the products with weights (the pairs of attention apart), a backward pass 2, the inner one, of the MLPs "
    "alone, 1.25; recomputation and backward through the inner backward pass count as they are run: 3 a byte that is read "
    "plainly, 4.25 to first order, 9 to second. s: of the processor, one thread, mean ± standard deviation over {seeds} seeds. "
    "Rates: the best of those tried on validation documents of the three sorts, read with learning by the first seed's model (* "
    "the first or the last one tried): of 4 outer rates and 3 at test for every arm, and of 3 inner rates in training where there is one."
)
READ_NOTE = (
    "Bits a byte of the first {document:,} bytes of documents, each a new user's, none trained on; {documents}. "
    "{unseen} were in no arm's training. Mean ± standard deviation over {seeds} seeds; less plain: the "
    "difference to the plain arm, seed by seed."
)
PLACE_NOTE = "Bits a byte by place in the document, in bytes: the mean of {sorts}."
GROUPS = {True: "sorts trained on", False: "sorts never trained on"}


def parts(results: dict[str, Any]) -> list[Part]:
    """Title, note, headings and rows of each table."""
    costs = [_cost(name, arm) for name, arm in results["arms"].items()]
    return [
        ("What was trained, and its cost", _cost_note(results), COST, costs),
        *(_reading(results, how) for how in HOW),
        *(_by_place(results, trained) for trained in GROUPS),
    ]


def _reading(results: dict[str, Any], how: str) -> Part:
    sorts, arms = results["sorts"], results["arms"]
    groups = [*(f"{name}: mean" for name in GROUPS.values()), *(f"{name}: less {BASELINE}" for name in GROUPS.values())]
    plain = arms.get(BASELINE, {}).get("runs")
    rows = [_read(name, arm["runs"], sorts, how, plain) for name, arm in arms.items()]
    return f"Read with {HOW[how]}, bits a byte", _read_note(results), ("arm", *sorts, *groups), rows


def _by_place(results: dict[str, Any], trained: bool) -> Part:
    names, ends = _of(results["sorts"], trained), results["ends"]
    rows = [
        [name, words, *(summary(values) for values in zip(*_places(arm["runs"], names, how), strict=True))]
        for name, arm in results["arms"].items()
        for how, words in HOW.items()
    ]
    headings = ("arm", "", *(f"{a:,} to {b:,}" for a, b in zip([0, *ends[:-1]], ends, strict=True)))
    return f"By place: {GROUPS[trained]}", PLACE_NOTE.format(sorts=", ".join(names)), headings, rows


def tables(results: dict[str, Any]) -> Group:
    """The same tables for the terminal."""
    return Group(*(table(title, headings, rows) for title, _, headings, rows in parts(results)))


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawings = [None] * 3 + [_figure(results, trained) for trained in GROUPS]
    drawn = [section(*part, drawing) for part, drawing in zip(parts(results), drawings, strict=True)]
    return page(results["title"], results["about"], drawn)


def mean_of(run: dict[str, Any], names: Sequence[str], how: str) -> float:
    """Bits a byte, the mean over sorts."""
    return fmean(run["read"][name][how]["bits"] for name in names)


def _of(sorts: dict[str, Any], trained: bool) -> list[str]:
    return [name for name, sort in sorts.items() if sort["trained"] == trained]


def _cost_note(results: dict[str, Any]) -> str:
    size, runs = results["size"], next(iter(results["arms"].values()))["runs"]
    trained = ", ".join(_of(results["sorts"], True))
    return COST_NOTE.format(trained=trained, seeds=len(runs), **size)


def _read_note(results: dict[str, Any]) -> str:
    sorts, runs = results["sorts"], next(iter(results["arms"].values()))["runs"]
    return READ_NOTE.format(
        document=results["size"]["document"],
        documents=", ".join(f"{sort['documents']} of {name}" for name, sort in sorts.items()),
        unseen=" and ".join(_of(sorts, False)),
        seeds=len(runs),
    )


def _cost(name: str, arm: dict[str, Any]) -> list[str]:
    first, setting = arm["runs"][0], arm["setting"]
    outer = _starred(setting["lr"], [met["setting"]["lr"] for met in arm["swept"]])
    inner = _starred(setting["inner"], [met["setting"]["inner"] for met in arm["swept"]])
    rate = _starred(arm["rate"], [float(rate) for met in arm["swept"] for rate in met["valid"]])
    seconds = summary([run["seconds"] for run in arm["runs"]], ",.0f")
    spent = [f"{first['bytes']:,}", f"{first['steps']:,}", f"{first['passes']:,.0f}", seconds]
    return [name, outer, inner, rate, *spent] if first["bytes"] else [name, *[NOTHING] * 2, rate, *[NOTHING] * 4]


def _starred(value: float | None, tried: Sequence[float | None]) -> str:
    """A rate, marked where it is the first or the last one tried of several."""
    numbers = sorted({one for one in tried if one is not None})
    if value is None:
        return NOTHING
    return number(value, "g") + ("*" if len(numbers) > 1 and value in (numbers[0], numbers[-1]) else "")


def _read(name: str, runs: Runs, sorts: dict[str, Any], how: str, plain: Runs | None) -> list[str]:
    groups = [_of(sorts, trained) for trained in GROUPS]
    each = [summary([run["read"][sort][how]["bits"] for run in runs]) for sort in sorts]
    means = [summary([mean_of(run, names, how) for run in runs]) for names in groups]
    apart = [_less(runs, plain, names, how) if plain and name != BASELINE else NOTHING for names in groups]
    return [name, *each, *means, *apart]


def _less(runs: Runs, plain: Runs, names: Sequence[str], how: str) -> str:
    pairs = zip(runs, plain, strict=True)
    return summary([mean_of(one, names, how) - mean_of(other, names, how) for one, other in pairs], "+.3f")


def _places(runs: Runs, names: Sequence[str], how: str) -> list[list[float]]:
    """For each seed bits a byte of every part, the mean over sorts."""
    return [
        [fmean(values) for values in zip(*(run["read"][name][how]["parts"] for name in names), strict=True)]
        for run in runs
    ]


def _figure(results: dict[str, Any], trained: bool) -> str:
    """Bits by place, learning (lines) and not (dots): the mean over seeds."""
    names, ends = _of(results["sorts"], trained), results["ends"]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (name, arm), look in zip(results["arms"].items(), looks(len(results["arms"])), strict=True):
            for how in HOW:
                means = [fmean(values) for values in zip(*_places(arm["runs"], names, how), strict=True)]
                if how == "on":
                    axes.plot(ends, means, look.marker, linestyle=look.line, color=look.colour, label=label(name))
                else:
                    axes.plot(ends, means, ".", color=look.colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ends, [f"to {end:,}" for end in ends])
        axes.set(xlabel="place in the document, bytes (lines: learning; dots: no learning)", ylabel="bits a byte")
        legend(figure, axes)

    title = f"Bits a byte by place in the document, {GROUPS[trained]}"
    return render(f"places-{'trained' if trained else 'new'}", title, draw, 4.0)
