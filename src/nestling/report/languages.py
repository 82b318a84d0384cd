"""What `nestling eval languages` measured: languages translated alone and in sequence, by the number of levels."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy
from rich.console import Group

from nestling.evals.languages.learn import at_the_end, lost
from nestling.evals.tuning import told
from nestling.report import sections
from nestling.report.curves import legend, looks
from nestling.report.sections import page, section, table
from nestling.report.svg import label, render
from nestling.report.values import NOTHING, number, size, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = dict[str, Any]
Part = tuple[str, str, Sequence[str], list[list[str]]]

HEADINGS = ("method", "alone", "in sequence", "drop", "the first language", "the last")
COSTS = ("method", "setting", "bytes", "s")
TRIED = ("method", "setting", "mean chrF")
TITLES = {
    "context": "With a context: {languages} languages alone, and one after the other",
    "memory": "The same readers without a context: what moved knows it, or nobody does",
}
NOTE = (
    "chrF of {asked} sentences a language that are not in its document, 0 to 100 (an oracle, which has the dictionary and the "
    "grammar by heart, has 100); mean ± standard deviation over {seeds} seeds, each of {languages} languages of its own, one "
    "backbone. A document has about {tokens} tokens, dictionary, grammar and {parallel} sentences with their translations. What "
    "learns reads it in {passes} passes: all lines in a random order, {lines} a text, each text a context of its own. Alone: by a "
    "reader who has read no other. In sequence: mean over all languages after the last one; drop: alone less in sequence, seed by "
    "seed; first and last language, after the last one."
)
NOTES = {
    "context": " Before each question stand the documents read so far, in their order, up to {window} tokens: in sequence all of them.",
    "memory": " Nothing stands before a question but the language's name.",
}
PAPER = (
    " In the paper (arXiv 2512.24695, two languages of MTOB's kind, a large pretrained backbone) in-context learning collapses in "
    "sequence, and the drop shrinks with each of one to three levels; it prints a figure and no numbers."
)
COST_NOTE = (
    "The backbone, {parameters:,} parameters, was trained on {trained:,} tokens of documents of other languages. Settings were chosen "
    "on languages of their own, by the mean of all four figures (alone and in sequence, with and without a context); ° is at an "
    "edge of what was tried. Bytes: of one reader, the context apart. s: of the processor, for a whole run, all questions included."
)


def tables(results: dict[str, Any]) -> Group:
    """For the terminal."""
    return Group(*(table(title, headings, rows) for title, _, headings, rows in parts(results)))


def parts(results: dict[str, Any]) -> list[Part]:
    """Of each table a title, how the figures came to be, headings and rows."""
    given = {**results, "seeds": len(results["seeds"])}
    found: list[Part] = []
    for kind, title in TITLES.items():
        note = NOTE + NOTES[kind] + (PAPER if kind == "context" else "")
        found.append((title.format(**given), note.format(**given), HEADINGS, rows(results, kind)))
    backbone = results["backbone"]
    note = COST_NOTE.format(parameters=backbone["parameters"], trained=backbone["tokens"])
    found.append(("Settings and costs", note, COSTS, costs(results)))
    found.append(("Settings tried", "On the languages that settings were chosen by.", TRIED, tried(results)))
    return found


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    first, *others = parts(results)
    return page(
        results["title"], results["about"], [section(*first, figure(results)), *(section(*part) for part in others)]
    )


def rows(results: dict[str, Any], kind: str) -> list[list[str]]:
    """A line for each method, of what it knew from a context ("context") or without ("memory")."""
    return [_row(name, [run[kind] for run in met["runs"]]) for name, met in results["methods"].items()]


def _row(name: str, met: list[Run]) -> list[str]:
    measures = (
        [fmean(one["alone"]) for one in met],
        [at_the_end(one) for one in met],
        [lost(one) for one in met],
        [one["rows"][-1][0] for one in met],
        [one["rows"][-1][-1] for one in met],
    )
    return [name, *(summary(values, ".1f") for values in measures)]


def costs(results: dict[str, Any]) -> list[list[str]]:
    """A line for each method."""
    return [
        [
            name,
            f"{told(met['setting']) or NOTHING}{'°' if met['edge'] else ''}",
            size(met["runs"][0]["bytes"]),
            summary([run["seconds"] for run in met["runs"]], ".0f"),
        ]
        for name, met in results["methods"].items()
    ]


def tried(results: dict[str, Any]) -> list[list[str]]:
    """A line for each setting of those that had several."""
    return [
        [
            name,
            told(trial["setting"]) + (" (taken)" if trial["setting"] == met["setting"] else ""),
            number(trial["worth"], ".1f"),
        ]
        for name, met in results["methods"].items()
        for trial in met["trials"]
        if len(met["trials"]) > 1
    ]


def figure(results: dict[str, Any]) -> str:
    """Alone and in sequence, against the number of levels; a panel with a context and one without."""
    counted = {met["levels"]: met for met in results["methods"].values() if met["levels"] is not None}
    counts = sorted(counted)
    if len(counts) < 2:
        return ""
    measures = {"alone": lambda met: fmean(met["alone"]), "in sequence": at_the_end}

    def draw(drawn: Figure) -> None:
        panels = drawn.subplots(1, len(TITLES), sharey=True)
        for axes, kind in zip(panels, TITLES, strict=True):
            for (name, measure), look in zip(measures.items(), looks(len(measures)), strict=True):
                values = numpy.array([[measure(run[kind]) for run in counted[n]["runs"]] for n in counts])
                spread = values.std(axis=1, ddof=min(1, values.shape[1] - 1))
                axes.errorbar(
                    counts, values.mean(axis=1), spread, color=look.colour, linestyle=look.line, marker=look.marker,
                    capsize=3, label=label(name),
                )  # fmt: skip
            axes.set(xlabel="levels beside the context", xticks=counts)
            axes.set_title({"context": "with a context", "memory": "without"}[kind], loc="left")
        panels[0].set_ylabel("chrF")
        legend(drawn, panels[0])

    return render("languages", "chrF alone and in sequence by the number of levels", draw, 3.8)
