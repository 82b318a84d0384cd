"""What `nestling eval formal-languages` measured: a table and a plot a language, beside the paper's figures."""

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
from nestling.report.values import NOTHING, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADINGS = ("model", "to 50", "51 to 100", "101 to 200", "paper", "parameters", "words learnt from", "s", "rate")
NOTE = (
    "Words whose every answer is right (which symbols may come next; of a word problem, the product so far), in %, by length; "
    "mean ± standard deviation over {seeds} seeds. Learnt from words of 2 to 50 symbols; the rate is chosen for each model by "
    "validation words of those lengths, so that nothing is chosen by longer ones. Hope takes its gradients at every token "
    "(chunk 1), and its memories fade to their initial weights, unless said; no recurrent model has a short convolution. "
    "Paper: to 50 / 51 to 100, Table 5 of arXiv 2512.24695. s: of the processor, one thread. * the best rate is "
    "the first or last one tried."
)

KNOWN, UNKNOWN = "100 / 100", "0 / 0"
_PERIODIC = {
    "Hope": KNOWN,
    "LSTM": KNOWN,
    "Transformer++": UNKNOWN,
    "linear attention": UNKNOWN,
    "DeltaNet": UNKNOWN,
}
_COUNTING = dict.fromkeys(_PERIODIC, KNOWN)
PAPER = {  # its Transformer stands beside Transformer++; the self-referential matrix of Irie et al. has no row here
    "parity": _PERIODIC | {"Transformer++": "46.4 / 0", "linear attention": "78.1 / 0", "DeltaNet": "98.2 / 10.1"},
    "(aa)*": _PERIODIC,
    "(abab)*": _PERIODIC,
    "a^n b^n": _COUNTING,
    "a^n b^n c^n": _COUNTING,
    "shuffle-2": _COUNTING,
}


def tables(results: dict[str, Any]) -> Group:
    """One table a language."""
    return Group(*(table(name, HEADINGS, rows(name, met)) for name, met in results["languages"].items()))


def parts(results: dict[str, Any]) -> list[tuple[str, str, Sequence[str], list[list[str]]]]:
    """For each language a title, how the figures came to be, headings and rows."""
    return [(name, note(met), HEADINGS, rows(name, met)) for name, met in results["languages"].items()]


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawings = (_lengths(name, met) for name, met in results["languages"].items())
    drawn = [section(*part, drawing) for part, drawing in zip(parts(results), drawings, strict=True)]
    return page(results["title"], results["about"], drawn)


def note(models: dict[str, Any]) -> str:
    """How the figures came to be."""
    return NOTE.format(seeds=len(next(iter(models.values()))["runs"]))


def rows(language: str, models: dict[str, Any]) -> list[list[str]]:
    """A line for each model."""
    return [_row(name, met, PAPER.get(language, {}).get(name, NOTHING)) for name, met in models.items()]


def _row(name: str, met: dict[str, Any], paper: str) -> list[str]:
    runs = met["runs"]
    bins = [
        summary([100 * fmean(found["accuracy"]) for found in seeds], ".1f")
        for seeds in zip(*(run["bins"] for run in runs), strict=True)
    ]
    costs = [summary([run[name] for run in runs], ",.0f") for name in ("words", "seconds")]
    return [name, *bins, paper, f"{runs[0]['parameters']:,}", *costs, f"{met['lr']:g}{'*' if met['edge'] else ''}"]


def _lengths(language: str, models: dict[str, Any]) -> str:
    """Accuracy against length, the mean over the seeds."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, met), look in zip(models.items(), looks(len(models)), strict=True):
            at = [length for found in met["runs"][0]["bins"] for length in found["lengths"]]
            curves = [[100 * a for found in run["bins"] for a in found["accuracy"]] for run in met["runs"]]
            means = [fmean(values) for values in zip(*curves, strict=True)]
            axes.plot(at, means, color=look.colour, linestyle=look.line, label=label(name))
        axes.axvspan(0, 50, alpha=0.08)
        axes.set(xlabel="length (learnt from: shaded)", ylabel="words all right, %", ylim=(-3, 103))
        legend(figure, axes)

    name = re.sub(r"\W+", "-", f"lengths {language}").strip("-")
    return render(name, f"Words of {language} that are all right, by their length", draw)
