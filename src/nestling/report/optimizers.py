"""What `nestling eval optimizers` measured, as one offline HTML page and as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
from rich.console import Group

from nestling.report import sections
from nestling.report.curves import legend, looks
from nestling.report.sections import page, section, table
from nestling.report.studies import studies
from nestling.report.svg import label, render
from nestling.report.values import size, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Part = tuple[str, str, Sequence[str], list[list[str]]]

HEADINGS = ("optimiser", "score", "ms a step", "state", "learning rate", "other setting")
NOTE = (
    "Each optimiser was tuned with {trials} trials (the rate first, then its other setting) on a seed and data of their own, "
    "and then run with {seeds} seeds; mean ± standard deviation, lower is better. * the best rate is the last one tried."
)


def rows(problem: dict[str, Any]) -> list[list[str]]:
    """A line for each optimiser, the best first."""
    entries = sorted(problem["optimizers"].items(), key=lambda entry: _order(entry[1]["scores"]))
    return [_row(name, met) for name, met in entries]


def _order(scores: Sequence[float]) -> float:
    mean = float(numpy.mean(scores))
    return mean if numpy.isfinite(mean) else numpy.inf


def _row(name: str, met: dict[str, Any]) -> list[str]:
    runs = met["runs"]
    milliseconds = [1000 * run["seconds"][-1] / run["steps"][-1] for run in runs if run["seconds"]]
    state = size(max(run["state_bytes"] for run in runs))
    rate = f"{met['lr']:g}{'*' if met['edge'] else ''}"
    return [name, summary(met["scores"]), summary(milliseconds, ".1f"), state, rate, met["knob"]]


def note(problem: dict[str, Any]) -> str:
    """How the figures came to be."""
    some = next(iter(problem["optimizers"].values()))
    return NOTE.format(trials=len(some["trials"]), seeds=len(some["scores"]))


def parts(results: dict[str, Any]) -> list[Part]:
    """Title, note, headings and rows of each table: one a problem, and one a study."""
    out: list[Part] = [
        (f"{name}: {p['measure']}", note(p), HEADINGS, rows(p)) for name, p in results["problems"].items()
    ]
    return out + [(study.title, study.note, study.headings, study.rows) for study in studies(results)]


def tables(results: dict[str, Any]) -> Group:
    """For the terminal."""
    return Group(*(table(title, headings, lines) for title, _, headings, lines in parts(results)))


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawings = [_curves(name, met) for name, met in results["problems"].items()]
    drawings += [study.figure and study.figure() for study in studies(results)]
    drawn = [section(*part, drawing) for part, drawing in zip(parts(results), drawings, strict=True)]
    return page(results["title"], results["about"], drawn)


def _curves(name: str, problem: dict[str, Any]) -> str:
    """Mean training loss over the seeds, against steps and against seconds."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2, sharey=True)
        entries = problem["optimizers"].items()
        for (optimizer, met), look in zip(entries, looks(len(problem["optimizers"])), strict=True):
            length = min(len(run["losses"]) for run in met["runs"])
            losses = numpy.mean([run["losses"][:length] for run in met["runs"]], axis=0)
            for ax, along in zip(axes, ("steps", "seconds"), strict=True):
                at = numpy.mean([run[along][:length] for run in met["runs"]], axis=0)
                ax.plot(at, losses, color=look.colour, linestyle=look.line, label=label(optimizer))
                ax.set_xlabel(along)
                ax.set_yscale("log")
        axes[0].set_ylabel("training loss")
        legend(figure, axes[0])

    return render(f"curves-{name}", f"Training loss on {name}, for each optimiser", draw, height=4.0)
