"""What `nestling eval exams` measured: all exams at a glance beside the paper's figures, then each with its costs."""

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
from nestling.report.values import summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Part = tuple[str, str, Sequence[str], list[list[str]]]

UNFIT = "does not fit"
HEADINGS = ("model", "test", "validation", "parameters", "steps", "examples learnt from", "s", "rate")
GLANCE = (
    "Macro accuracy of MAD's tasks, accuracy of MQAR's and of regression, share of the answers that are right of all others, in % "
    "of {test} test examples; {seeds}. Models of {blocks} blocks of width {width} and about "
    "{parameters:,} parameters besides embedding and head, trained for at most {steps:,} steps of {tokens:,} symbols, fewer once "
    "99.9% of the validation examples' answers are right. Chance: guessing among the possible answers."
)
PAPER_NOTE = (
    "Table 4 of arXiv 2512.24695, in %: the same tasks, with other parameters, and trained as mad-lab does: up to 20,000 steps "
    "of 128 examples. The score of mad-lab's benchmark is a mean over the baseline, which is what is run here, and harder "
    "settings; which of the two the paper's figures are is not known here."
)
NOTE = (
    "{task}. Batches of {batch}. The rate is the best of the rates tried, by validation examples and by no others (* the first or last one "
    "tried). s: of the processor, one thread."
)
PAPER = {
    "compression": {"Transformer++": 49.4, "Titans": 49.8, "Hope": 51.2},
    "in-context recall": {"Transformer++": 100, "Titans": 100, "Hope": 100},
    "fuzzy recall": {"Transformer++": 47.9, "Titans": 50.0, "Hope": 52.1},
    "selective copying": {"Transformer++": 96.2, "Titans": 99.4, "Hope": 99.7},
    "memorisation": {"Transformer++": 83.7, "Titans": 83.4, "Hope": 85.2},
}


def tables(results: dict[str, Any]) -> Group:
    """A table of all, and one for each exam."""
    return Group(*(table(title, headings, rows) for title, _, headings, rows in parts(results)))


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawings = [None] * len(_summaries(results)) + [_drawing(name, met) for name, met in results["exams"].items()]
    drawn = [section(*part, drawing) for part, drawing in zip(parts(results), drawings, strict=True)]
    return page(results["title"], results["about"], drawn)


def parts(results: dict[str, Any]) -> list[Part]:
    """Of each table a title, how the figures came to be, headings and rows."""
    each = [
        (name, NOTE.format(task=met["task"], batch=met["batch"]), _headings(met), rows(met))
        for name, met in results["exams"].items()
    ]
    return [*_summaries(results), *each]


def _summaries(results: dict[str, Any]) -> list[Part]:
    exams = results["exams"]
    models = list(next(iter(exams.values()))["models"])
    count = len(results["seeds"])
    seeds = f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed, so no spread"
    note = GLANCE.format(**results["size"], **results["model"], seeds=seeds)
    glance = [
        [
            name,
            *(score([run["score"] for run in met["models"][model]["runs"]]) for model in models),
            f"{100 * met['chance']:.1f}",
        ]
        for name, met in exams.items()
    ]
    found: list[Part] = [("All exams", note, ("exam", *models, "chance"), glance)]
    paper = [[name, *(f"{PAPER[name][m]:.1f}" for m in PAPER[name])] for name in exams if name in PAPER]
    if paper:
        found.append(("The paper's figures", PAPER_NOTE, ("exam", *PAPER["compression"]), paper))
    return found


def score(values: Sequence[float | None]) -> str:
    """In %, with its spread; what a model cannot hold has none."""
    if any(value is None for value in values):
        return UNFIT
    return summary([None if value is None else 100 * value for value in values], ".1f")


def _headings(met: dict[str, Any]) -> tuple[str, ...]:
    (first, *_) = met["models"].values()
    return (*HEADINGS, *first["runs"][0]["further"])


def rows(met: dict[str, Any]) -> list[list[str]]:
    """A line for each model."""
    return [_row(name, found, met["batch"]) for name, found in met["models"].items()]


def _row(name: str, met: dict[str, Any], batch: int) -> list[str]:
    runs = met["runs"]
    return [
        name,
        score([run["score"] for run in runs]),
        score([run["validation"] for run in runs]),
        f"{runs[0]['parameters']:,}",
        summary([run["steps"] for run in runs], ",.0f"),
        summary([batch * run["steps"] for run in runs], ",.0f"),
        summary([run["seconds"] for run in runs], ",.0f"),
        f"{met['lr']:g}{'*' if met['edge'] else ''}",
        *(score([run["further"][task] for run in runs]) for task in runs[0]["further"]),
    ]


def _drawing(name: str, met: dict[str, Any]) -> str:
    """Lengths by depths as a map for each model; or lengths as lines; or, of a single task, scores while learning and by order."""
    (first, *_) = met["models"].values()
    further = list(first["runs"][0]["further"])
    identity = re.sub(r"\W+", "-", f"exam {name}").strip("-")
    if further and all(" at " in task for task in further):
        return render(identity, f"{name}: answers that are right, by length and depth", lambda f: _maps(f, met), 3.0)
    if further:
        return render(identity, f"{name}: answers that are right, by length", lambda f: _lengths(f, met))
    return render(
        identity, f"{name}: validation examples while learning; answers by their order", lambda f: _single(f, met)
    )


def _mean(met: dict[str, Any], task: str) -> float:
    """Over the seeds, in %; NaN of what does not fit."""
    values = [run["further"][task] for run in met["runs"]]
    return float("nan") if None in values else 100 * fmean(values)


def _maps(figure: Figure, met: dict[str, Any]) -> None:
    every = figure.subplots(1, len(met["models"]), sharey=True, squeeze=False)[0]
    for axes, (name, found) in zip(every, met["models"].items(), strict=True):
        cells = [task.split(" at ") for task in found["runs"][0]["further"]]
        lengths, depths = (list(dict.fromkeys(values)) for values in zip(*cells, strict=True))
        scores = [[_mean(found, f"{length} at {depth}") for length in lengths] for depth in depths]
        axes.imshow(scores, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        for y, line in enumerate(scores):
            for x, value in enumerate(line):
                text = f"{value:.0f}" if value == value else "-"
                axes.text(x, y, text, ha="center", va="center", color="white" if not value > 60 else "black")
        axes.set_xticks(range(len(lengths)), lengths)
        axes.set_yticks(range(len(depths)), depths)
        axes.set_title(name, loc="left")
        axes.set_xlabel("length")
        axes.grid(False)
    every[0].set_ylabel("depth")


def _lengths(figure: Figure, met: dict[str, Any]) -> None:
    axes = figure.subplots()
    for (name, found), look in zip(met["models"].items(), looks(len(met["models"])), strict=True):
        tasks = list(found["runs"][0]["further"])
        means = [_mean(found, task) for task in tasks]
        axes.plot(tasks, means, color=look.colour, linestyle=look.line, marker=look.marker, label=label(name))
    axes.axhline(100 * met["chance"], linewidth=0.8, linestyle=":")
    axes.set(xlabel="length", ylabel="right, %", ylim=(-3, 103))
    legend(figure, axes)


def _single(figure: Figure, met: dict[str, Any]) -> None:
    learning, order = figure.subplots(1, 2, sharey=True)
    _learning(learning, met)
    for (_, found), look in zip(met["models"].items(), looks(len(met["models"])), strict=True):
        means = [100 * fmean(values) for values in zip(*(run["by_order"] for run in found["runs"]), strict=False)]
        order.plot(range(1, len(means) + 1), means, color=look.colour, linestyle=look.line)
    order.set(xlabel="how many answers were asked so far", ylabel="right, %")


def _learning(axes: Axes, met: dict[str, Any]) -> None:
    for (name, found), look in zip(met["models"].items(), looks(len(met["models"])), strict=True):
        for number, run in enumerate(found["runs"]):
            steps, scores = zip(*run["curve"], strict=True) if run["curve"] else ((), ())
            named = label(name) if not number else None
            axes.plot(steps, [100 * s for s in scores], color=look.colour, linestyle=look.line, label=named)
    axes.axhline(100 * met["chance"], linewidth=0.8, linestyle=":")
    axes.set(xlabel="steps", ylabel="validation score, %", ylim=(-3, 103))
    axes.legend()
