"""What `nestling eval continual` measured: who learns class after class, what is forgotten, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy
from rich.console import Group

from nestling.evals.continual.metrics import (
    anytime_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forgetting_so_far,
    forward_transfer,
    last_accuracy,
    seen_accuracy,
)
from nestling.report import sections
from nestling.report.curves import legend, looks
from nestling.report.sections import page, section, table
from nestling.report.svg import label, render
from nestling.report.values import NOTHING, number, size, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = dict[str, Any]
Part = tuple[str, str, Sequence[str], list[list[str]]]

MEASURES: dict[str, Callable[[Run], float]] = {
    "average": lambda run: 100 * average_incremental_accuracy(run["matrix"], run["sizes"]),
    "last": lambda run: 100 * last_accuracy(run["matrix"], run["sizes"]),
    "macro": lambda run: 100 * run["macro"][-1],
    "anytime": lambda run: 100 * anytime_accuracy(run["anytime"]),
    "forgetting": lambda run: 100 * forgetting(run["matrix"]),
    "backward": lambda run: 100 * backward_transfer(run["matrix"]),
    "forward": lambda run: 100 * forward_transfer(run["matrix"], run["chance"]),
}
COSTS = ("parameters", "bytes", "s", "s judged")
# Frozen features of the same encoder, test accuracy in %, last column of a class-incremental run: measured beforehand, by other code.
REFERENCE = {
    "clinc150": {"nearest class mean": 91.7, "SLDA, as published": 92.9, "RanPAC, as published": 94.3},
    "banking77": {"nearest class mean": 84.9, "SLDA, as published": 90.0, "RanPAC, as published": 93.0},
    "clinc150-cil": {"nearest class mean": 92.1, "SLDA, as published": 92.9, "RanPAC, as published": 95.6},
    "banking77-cil": {"nearest class mean": 86.3, "SLDA, as published": 90.6, "RanPAC, as published": 93.3},
    "dbpedia70-cil": {"nearest class mean": 79.2, "SLDA, as published": 87.5, "RanPAC, as published": 85.3},
}
PAPER = (
    "The paper's figure of class-incremental CLINC, Banking and DBpedia (arXiv 2512.24695, a Llama-3 backbone) has no printed numbers: "
    "Hope stands first there, above InCA, EWC and in-context learning."
)
OVERVIEW_NOTE = (
    "Test accuracy in % after the last experience, mean ± standard deviation over {seeds} class orders. Every method sees every "
    "example once, in batches of {batch}, unless its name says more; it does not know how many classes will come, nor, but for tasks, "
    "which experience a test example belongs to. * a memory of this library. Joint training is no continual learner: it keeps and "
    "goes over everything. " + PAPER
)
REFERENCE_NOTE = "Figures measured beforehand with other code on the same encoder, and ours: last accuracy in %."
SCENARIO_NOTE = (
    "{about}. Accuracies in %. Average: of the accuracy on all classes so far, over the experiences (Rebuffi et al. 2017). Macro: every "
    "class counts alike. Anytime: area under the accuracy curve (Koh et al. 2022). Forgetting: Chaudhry et al. 2018; backward and forward: "
    "Lopez-Paz and Ranzato 2017. Parameters: that a prediction reads, and bytes: all that is stored to go on, both without the backbone. "
    "s: of the processor, to learn, and to be judged (methods that solve when they are asked do it there), without the encoder's."
)
SETTINGS_NOTE = (
    "Chosen on a validation stream, cut from the training examples of another class order, by accuracy at its end (RanPAC as published: by "
    "squared error, as its authors do). * at the edge of what was tried."
)


def tables(results: dict[str, Any]) -> Group:
    """For the terminal."""
    return Group(*(table(title, columns, rows) for title, _, columns, rows in parts(results)))


def parts(results: dict[str, Any]) -> list[Part]:
    """Title, note, columns and lines: all scenarios, the reference points, each scenario, the settings."""
    scenarios = results["scenarios"]
    note = OVERVIEW_NOTE.format(seeds=len(results["seeds"]), batch=results["batch"])
    found: list[Part] = [("Last accuracy", note, ("method", *scenarios), overview(results, "last"))]
    found += [("Average incremental accuracy", "As above.", ("method", *scenarios), overview(results, "average"))]
    if rows := reference(results):
        columns = ("scenario", "method", "reference", "ours", "difference")
        found.append(("Reference points", REFERENCE_NOTE, columns, rows))
    for name, scenario in scenarios.items():
        note = SCENARIO_NOTE.format(about=scenario["about"])
        found.append((name, note, ("method", *measures(scenario), *COSTS), rows_of(scenario, results["ours"])))
    return [*found, ("Settings", SETTINGS_NOTE, ("method", *scenarios), settings(results))]


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawn = []
    for title, note, columns, rows in parts(results):
        scenario = results["scenarios"].get(title)
        drawing = _curves(title, scenario) + _matrices(title, scenario) if scenario else ""
        drawn.append(section(title, note, columns, rows, drawing))
    return page(results["title"], results["about"], drawn)


def overview(results: dict[str, Any], measure: str) -> list[list[str]]:
    """A line for each method, a column for each scenario."""
    scenarios = results["scenarios"].values()
    names = list(dict.fromkeys(name for scenario in scenarios for name in scenario["methods"]))
    return [
        [_starred(name, results["ours"]), *(_cell(scenario, name, measure) for scenario in scenarios)] for name in names
    ]


def reference(results: dict[str, Any]) -> list[list[str]]:
    """A line for each figure that was measured beforehand and by us."""
    found = []
    for place, known in REFERENCE.items():
        methods = results["scenarios"].get(place, {"methods": {}})["methods"]
        for name, figure in known.items():
            if name in methods:
                ours = [MEASURES["last"](run) for run in methods[name]["runs"]]
                change = number(float(numpy.mean(ours)) - figure, "+.1f")
                found.append([place, name, f"{figure:.1f}", summary(ours, ".1f"), change])
    return found


def measures(scenario: dict[str, Any]) -> list[str]:
    """Those that have a meaning: forward transfer needs classes that are known before."""
    return [name for name in MEASURES if name != "forward" or scenario["kind"] == "domain"]


def rows_of(scenario: dict[str, Any], ours: Sequence[str]) -> list[list[str]]:
    """A line for each method."""
    return [
        [
            _starred(name, ours),
            *(summary([MEASURES[measure](run) for run in met["runs"]], ".1f") for measure in measures(scenario)),
            f"{met['runs'][0]['parameters']:,}",
            size(met["runs"][0]["bytes"]),
            *(summary([run[which] for run in met["runs"]], ".1f") for which in ("seconds", "judging")),
        ]
        for name, met in scenario["methods"].items()
    ]


def settings(results: dict[str, Any]) -> list[list[str]]:
    """A line for each method: what was chosen for each scenario."""
    scenarios = results["scenarios"].values()
    names = list(dict.fromkeys(name for scenario in scenarios for name in scenario["methods"]))
    return [[name, *(_setting(scenario["methods"].get(name)) for scenario in scenarios)] for name in names]


def _setting(met: dict[str, Any] | None) -> str:
    if met is None or not met["setting"]:
        return NOTHING
    values = met["setting"].items()
    told = ", ".join(f"{key} {value if isinstance(value, str) else f'{value:g}'}" for key, value in values)
    return told + ("*" if met["edge"] else "")


def _cell(scenario: dict[str, Any], name: str, measure: str) -> str:
    met = scenario["methods"].get(name)
    return NOTHING if met is None else summary([MEASURES[measure](run) for run in met["runs"]], ".1f")


def _starred(name: str, ours: Sequence[str]) -> str:
    return f"{name} *" if name in ours else name


def _curves(name: str, scenario: dict[str, Any]) -> str:
    """Accuracy on all so far, and what was forgotten of it, after each experience: means over the seeds."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 2)
        for (method, met), look in zip(scenario["methods"].items(), looks(len(scenario["methods"])), strict=True):
            runs = met["runs"]
            seen = numpy.mean([seen_accuracy(run["matrix"], run["sizes"]) for run in runs], axis=0)
            lost = numpy.mean([forgetting_so_far(run["matrix"]) for run in runs], axis=0)
            for ax, values in zip(axes, (seen, lost), strict=True):
                at = range(1, len(values) + 1)
                ax.plot(at, 100 * values, color=look.colour, linestyle=look.line, label=label(method))
        axes[0].set(xlabel="experiences", ylabel="accuracy on all so far, %")
        axes[1].set(xlabel="experiences", ylabel="forgetting, %")
        legend(figure, axes[0])

    return render(f"curves-{name}", f"{name}: accuracy and forgetting, experience by experience", draw, height=4.6)


def _matrices(name: str, scenario: dict[str, Any]) -> str:
    """The accuracy matrix of each method, means over the seeds: a row an experience learnt, a column one judged."""
    methods, columns = scenario["methods"], 5
    lines = math.ceil(len(methods) / columns)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(lines, columns, squeeze=False)
        image = None
        for ax, (method, met) in zip(grid.flat, methods.items(), strict=False):
            matrices = numpy.array(
                [run["matrix"] for run in met["runs"]], dtype=float
            )  # a None becomes NaN: left white
            image = ax.imshow(100 * matrices.mean(axis=0), vmin=0, vmax=100, cmap="viridis", interpolation="nearest")
            ax.set_title(label(method), fontsize=7.5)
            ax.set(xticks=[], yticks=[])
        for ax in grid.flat[len(methods) :]:
            ax.set_axis_off()
        grid[0, 0].set(xlabel="judged on", ylabel="after learning")
        if image is not None:
            figure.colorbar(image, ax=grid, shrink=0.6, label="accuracy, %")

    return render(f"matrices-{name}", f"{name}: accuracy matrices", draw, height=0.6 + 1.9 * lines)
