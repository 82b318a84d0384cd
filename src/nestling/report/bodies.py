"""What `nestling eval bodies` measured: what networks learn task after task, what they keep, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy
from rich.console import Group

from nestling.evals.continual.metrics import average_accuracy, backward_transfer, forgetting, forward_transfer
from nestling.report import sections
from nestling.report.curves import legend, looks
from nestling.report.sections import page, section, table
from nestling.report.svg import label, render
from nestling.report.values import NOTHING, size, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = dict[str, Any]
Part = tuple[str, str, Sequence[str], list[list[str]]]

MEASURES: dict[str, Callable[[Run], float]] = {
    "last": lambda run: 100 * average_accuracy(run["matrix"]),
    "learnt": lambda run: 100 * float(numpy.diagonal(_array(run)).mean()),
    "forgetting": lambda run: 100 * forgetting(run["matrix"]),
    "backward": lambda run: 100 * backward_transfer(run["matrix"]),
    "forward": lambda run: 100 * forward_transfer(run["matrix"], run["chance"]),
}
NOTE = (
    "{about}. Test accuracy in %, mean ± standard deviation over {seeds} seeds (weights, domains, order). Every example comes once, in "
    "batches of {batch}, and at test nothing says which task it belongs to; networks of hidden widths {hidden}, the same initial weights "
    "for every method. Last: over all tasks after the last one. Learnt: of each task right after it (plasticity). Forgetting: Chaudhry et "
    "al. 2018; backward and forward transfer: Lopez-Paz and Ranzato 2017. Bytes: all that is stored to go on, weights included. s: of the "
    "processor, to learn. * levels of this library. EWC and online Laplace are told when a task ends; joint training keeps everything and "
    "goes over it again: an upper bound, judged at the end alone."
)
FRONTIER_NOTE = (
    "Every setting that was tried, on a validation stream (other domains, another seed, judged by a sixth of the training examples, "
    "learnt by none): what was learnt of each task right after it, against what was known of all at the end, in %. Of two methods the "
    "better one is above at the same plasticity. The setting with the best last accuracy was taken; ° is at an edge of what was tried."
)


def tables(results: dict[str, Any]) -> Group:
    """For the terminal."""
    return Group(*(table(title, columns, rows) for title, _, columns, rows in parts(results)))


def parts(results: dict[str, Any]) -> list[Part]:
    """Title, note, columns and lines: for each scenario who keeps what, and all trials."""
    found: list[Part] = []
    for name, scenario in results["scenarios"].items():
        hidden = " and ".join(map(str, results["hidden"]))
        note = NOTE.format(about=scenario["about"], seeds=len(results["seeds"]), batch=results["batch"], hidden=hidden)
        found.append((name, note, ("method", *MEASURES, "parameters", "bytes", "s"), rows_of(scenario)))
        columns = ("method", "setting", "learnt", "last", "s")
        found.append((f"{name}: settings tried", FRONTIER_NOTE, columns, trials(scenario)))
    return found


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawn = []
    for title, note, columns, rows in parts(results):
        name, _, tried = title.partition(":")
        scenario = results["scenarios"][name]
        drawn.append(
            section(title, note, columns, rows, frontier(name, scenario) if tried else drawing(name, scenario))
        )
    return page(results["title"], results["about"], drawn)


def rows_of(scenario: dict[str, Any]) -> list[list[str]]:
    """A line for each method."""
    return [
        [
            f"{name} *" if met["ours"] else name,
            *(measured(measure, met) for measure in MEASURES),
            f"{met['runs'][0]['parameters']:,}",
            size(met["runs"][0]["bytes"]),
            summary([run["seconds"] for run in met["runs"]], ".0f"),
        ]
        for name, met in scenario["methods"].items()
    ]


def measured(measure: str, met: dict[str, Any]) -> str:
    """A cell; what was judged at the end alone has a last accuracy and nothing else."""
    if measure != "last" and met["runs"][0]["matrix"][0][0] is None:
        return NOTHING
    return summary([MEASURES[measure](run) for run in met["runs"]], ".1f")


def trials(scenario: dict[str, Any]) -> list[list[str]]:
    """A line for each setting of each method; the one that was taken is marked."""
    found = []
    for name, met in scenario["methods"].items():
        for trial in met["trials"]:
            words = ", ".join(f"{key} {value:g}" for key, value in trial["setting"].items())
            taken = trial["setting"] == met["setting"]
            mark = (" (taken°)" if met["edge"] else " (taken)") if taken else ""
            figures = (NOTHING if (x := trial[which]) is None else f"{100 * x:.1f}" for which in ("learnt", "last"))
            found.append([name, words + mark, *figures, f"{trial['seconds']:.0f}"])
    return found


def drawing(name: str, scenario: dict[str, Any]) -> str:
    """Accuracy over the tasks so far, after each; and where there are counts of levels, last accuracy against them."""
    methods = {method: met for method, met in scenario["methods"].items() if met["levels"] in (None, 1)}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (method, met), look in zip(methods.items(), looks(len(methods)), strict=True):
            matrices = numpy.stack([_array(run) for run in met["runs"]])
            seen = [matrices[:, at, : at + 1].mean() for at in range(matrices.shape[1])]
            at = range(1, len(seen) + 1)
            axes.plot(at, 100 * numpy.array(seen), color=look.colour, linestyle=look.line, label=label(method))
        axes.set(xlabel="tasks learnt", ylabel="accuracy on all so far, %")
        legend(figure, axes)

    return render(f"seen-{name}", f"{name}: accuracy on all tasks so far", draw, height=4.4) + by_levels(name, scenario)


def by_levels(name: str, scenario: dict[str, Any]) -> str:
    """Last accuracy, and what was learnt, against the number of levels; nothing where it was not varied."""
    counted = {met["levels"]: met for met in scenario["methods"].values() if met["levels"] is not None}
    counts = sorted(counted)
    if len(counts) < 2:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for measure, look in zip(("last", "learnt"), looks(2), strict=True):
            values = numpy.array([[MEASURES[measure](run) for run in counted[count]["runs"]] for count in counts])
            spread = values.std(axis=1, ddof=min(1, values.shape[1] - 1))
            axes.errorbar(
                counts, values.mean(axis=1), spread, color=look.colour, marker=look.marker, capsize=3, label=measure
            )
        axes.set(xlabel="levels", ylabel="accuracy, %", xticks=counts)
        legend(figure, axes)

    return render(f"levels-{name}", f"{name}: accuracy against the number of levels", draw, height=3.4)


def frontier(name: str, scenario: dict[str, Any]) -> str:
    """Plasticity against stability: a point a setting."""
    methods = {name: met for name, met in scenario["methods"].items() if met["trials"][0]["learnt"] is not None}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (method, met), look in zip(methods.items(), looks(len(methods)), strict=True):
            points = [(100 * trial["learnt"], 100 * trial["last"]) for trial in met["trials"]]
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, color=look.colour, marker=look.marker, s=18, label=label(method))
        best = max(trial["learnt"] for met in methods.values() for trial in met["trials"])
        axes.set(xlabel="learnt: each task right after it, %", ylabel="last: all tasks at the end, %")
        axes.set_xlim(100 * best - 15, 100 * best + 1)
        legend(figure, axes)

    return render(f"frontier-{name}", f"{name}: plasticity against stability", draw, height=4.8)


def _array(run: Run) -> numpy.ndarray:
    """The accuracy matrix, what was not judged as NaN."""
    return numpy.array(run["matrix"], dtype=float)
