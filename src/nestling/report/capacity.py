"""What `python -m benchmarks.capacity` measured: verdicts on what theory says, tables, and recall against stored pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Group

from nestling.report import sections
from nestling.report.curves import band, legend, looks
from nestling.report.sections import page, section, table
from nestling.report.svg import MUTED, label, render
from nestling.report.values import NOTHING, summary
from nestling.report.verdicts import (
    CLAIMS,
    HEADINGS,
    RAN_OFF,
    Claim,
    Memory,
    best,
    chosen,
    errors,
    focus,
    measures,
    named,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Part = tuple[str, str, Sequence[str], list[list[str]]]
Results = dict[str, Any]

NOTE = (
    "Recall error: the mean squared error of what is read over the mean square of the values; 0 is perfect, 1 no better "
    "than silence. Keys (norm 1) and values (mean square norm 1) are {dim} wide; pairs pass once, in chunks of 1 unless "
    "said; then keys are read from the last state (of more than 256 stored ones, some at even steps). Mean ± standard "
    "deviation over {seeds} seeds of {draws} draws each. Every memory has its own best constant rate at each number of "
    "pairs and for each measure, chosen on {validation} other seeds. Networks with hidden layers start at random, anew in "
    "every draw: nothing is meta-learnt. Momentum is {theta:g}. Fast forms and the token-loop oracle differed by at most "
    "{largest:.0e} over all {memories} memories."
)
GRID = (
    "In parentheses the rate; * it is the first or last that was tried (of least squares the first writes next to nothing, "
    "and the last has next to no ridge; DGD's step hardly grows beyond its last). A memory that ran off on a seed had not on "
    "those that its rate was chosen on."
)
THEORY = (
    "Unrelated pairs in a matrix, by number of pairs: measured / expected, in closed form (at the best rate there is, where "
    "what was measured has the best of a grid). Hebbian: (1 - rate)^2 + rate^2 (n - 1) / d. Least squares: 0, and 1 - d / n "
    "beyond d. The delta rule's is a recursion in three numbers (benchmarks/pairs.py)."
)
SIZES = (
    "Hidden widths are such that networks have as many weights as a matrix: exactly, or as nearly as whole widths come. "
    "Random features and polynomials are as many as keys are wide, or three times as many; polynomials of degree 2 are "
    "projected at random. Plain descent, DGD, the delta rule and Oja carry nothing beside; orthogonal writes a momentum."
)


def tables(results: Results) -> Group:
    """All tables."""
    return Group(*(table(title, headings, rows) for title, _, headings, rows in parts(results)))


def markdown(results: Results) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: Results) -> str:
    """The whole page; needs matplotlib."""
    overview, *rest = parts(results)
    every = [_figure(f"Every memory: {task['title']}", _every(results, name)) for name, task in _tasks(results)]
    return page(
        results["title"],
        results["about"],
        [section(*overview, _summary(results)), *(section(*p) for p in rest), *every],
    )


def _figure(title: str, drawing: str) -> str:
    """A part of the page without a table."""
    return f"<section><h2>{escape(title)}</h2><figure><div class='scroll'>{drawing}</div></figure></section>"


def parts(results: Results) -> list[Part]:
    """Of each table a title, how the figures came to be, headings and rows."""
    verdicts = [_verdict(results, claim) for claim in CLAIMS]
    grids = [_grid(results, name, measure) for name, measure in _last_measures(results)]
    return [_overview(results), *verdicts, _theory(results), *grids, _others(results), _sizes(results)]


def recalled(values: Iterable[float | None]) -> str:
    """Errors of some seeds; in how many the memory ran off, if it did."""
    every = list(values)
    off = sum(value is None or value > RAN_OFF for value in every)
    return f"ran off, {off} of {len(every)}" if off else summary(every)


def _tasks(results: Results) -> list[tuple[str, Any]]:
    return list(results["tasks"].items())


def _last_measures(results: Results) -> list[tuple[str, str]]:
    """Stored keys of unrelated pairs, unseen keys of maps."""
    return [(name, "unseen" if task["map"] else "stored") for name, task in _tasks(results)]


def _at(results: Results, task: str) -> int:
    """Which number of pairs tables show."""
    return results["tasks"][task]["pairs"].index(focus(results, task))


def _kinds(results: Results) -> dict[str, list[Memory]]:
    """The memories whose best is drawn and listed first."""
    matrix = {"network": "Matrix", "size": 1}
    kinds = {
        "matrix, Hebbian": chosen(results, **matrix, objective="dot product", rule="plain"),
        "matrix, delta rule": chosen(results, **matrix, rule="delta rule"),
        "matrix, least squares": chosen(results, **matrix, rule="least squares"),
        "features, best": chosen(results, kind="features", size=1),
        "deep, best": chosen(results, kind="deep", size=1),
        "deep, 3 times the weights, best": chosen(results, kind="deep", size=3),
    }
    return {name: memories for name, memories in kinds.items() if memories}


def _overview(results: Results) -> Part:
    """A column a task and measure."""
    draws = " or ".join(str(n) for n in sorted({task["draws"] for _, task in _tasks(results)}))
    parity = results["parity"]
    note = NOTE.format(**results | {"draws": draws, "largest": parity["largest"], "memories": parity["memories"]})
    where = _last_measures(results)
    headings = ["memory", *(_heading(results, name, measure) for name, measure in where), "the best of the last"]
    rows = []
    for kind, memories in _kinds(results).items():
        tops = [best(memories, name, measure, _at(results, name)) for name, measure in where]
        cells = [
            recalled(top[measure][name]["errors"][_at(results, name)])
            for top, (name, measure) in zip(tops, where, strict=True)
        ]
        rows.append([kind, *cells, named(tops[-1]) if len(memories) > 1 else NOTHING])
    return "Recall error", note, headings, rows


def _heading(results: Results, name: str, measure: str) -> str:
    return f"{name}, {measure}, {results['tasks'][name]['pairs'][_at(results, name)]} pairs"


def _verdict(results: Results, claim: Claim) -> Part:
    """A line a contest; the note begins with what they come to."""
    found = claim.contests(results)
    rows = [contest.row() for contest in found]
    note = (
        f"{claim.verdict(found, results['dim'])} {claim.note} A yes or no is a mean difference above its standard deviation "
        "over seeds; what is best is chosen on the draws that rates are chosen on."
    )
    return claim.title, note, HEADINGS, rows


def _theory(results: Results) -> Part:
    """Measured on a matrix, beside the closed form."""
    fixed, free = {"network": "Matrix, rate 1"}, {"network": "Matrix", "size": 1}
    hebbian, delta = {"objective": "dot product", "rule": "plain"}, {"rule": "delta rule"}
    measured = {
        "dot product, best rate": free | hebbian,
        "delta rule, best rate": free | delta,
        "dot product, rate 1": fixed | hebbian,
        "delta rule, rate 1": fixed | delta,
        "least squares": free | {"rule": "least squares"},
    }
    pairs = results["tasks"]["unrelated"]["pairs"]
    rows = []
    for name, expected in results["theory"].items():
        for memory in chosen(results, **measured[name]):
            found = memory["stored"]["unrelated"]["errors"]
            rows.append([name, *(f"{recalled(e)} / {x:.3f}" for e, x in zip(found, expected, strict=True))])
    return "Closed forms", THEORY, ("a matrix by", *map(str, pairs)), rows


def _grid(results: Results, task: str, measure: str) -> Part:
    """A line a network and objective, a column a rule."""
    networks = _networks(results)
    shown = [memory for memory in chosen(results, size=1) if memory["network"] in networks]
    rules = list(dict.fromkeys(memory["rule"] for memory in shown))
    i = _at(results, task)
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for memory in shown:
        met = memory[measure][task]
        cell = f"{recalled(met['errors'][i])} ({met['rates'][i]:.2g}{'*' if met['edge'][i] else ''})"
        lines.setdefault((memory["network"], memory["objective"]), {})[memory["rule"]] = cell
    rows = [
        [f"{network}; {objective}", *(by.get(rule, NOTHING) for rule in rules)]
        for (network, objective), by in lines.items()
    ]
    title = f"{results['tasks'][task]['title']}: {measure} keys, {results['tasks'][task]['pairs'][i]} pairs"
    return title, GRID, ("network; objective", *rules), rows


def _networks(results: Results) -> list[str]:
    """Those that combine with every objective."""
    objectives: dict[str, set[str]] = {}
    for memory in results["memories"]:
        objectives.setdefault(memory["network"], set()).add(memory["objective"])
    return [name for name, found in objectives.items() if len(found) > 2]


def _others(results: Results) -> Part:
    """Retentions, larger memories, and least squares at as many numbers in all as a matrix has."""
    where, networks = _last_measures(results), _networks(results)
    rows = [
        [named(memory), f"{memory['weights']} + {memory['carried']}"]
        + [recalled(memory[measure][name]["errors"][_at(results, name)]) for name, measure in where]
        for memory in results["memories"]
        if memory["size"] > 1 or memory["network"] not in networks
    ]
    headings = ["memory", "weights + carried", *(_heading(results, name, measure) for name, measure in where)]
    return "Further memories", "Other retentions, and memories of three times the weights.", headings, rows


def _sizes(results: Results) -> Part:
    """What each network stores, and what rules carry."""
    rules = ("momentum", "Omega(16)", "least squares")
    rows = []
    for network in dict.fromkeys(memory["network"] for memory in results["memories"]):
        of = chosen(results, network=network)
        weights = [next((str(m["weights"]) for m in of if m["size"] == size), NOTHING) for size in (1, 3)]
        carried = [
            next((str(m["carried"]) for m in of if m["rule"] == rule and m["size"] == 1), NOTHING) for rule in rules
        ]
        rows.append([network, *weights, *carried])
    headings = ("network", "weights", "3 times", *(f"carried by {rule}" for rule in rules))
    return "Numbers that a memory stores", SIZES, headings, rows


def _summary(results: Results) -> str:
    """A panel a task and measure, the best of each kind, with a standard deviation to either side."""
    kinds, where = _kinds(results), measures(results)

    def draw(figure: Figure) -> None:
        every = figure.subplots(2, -(-len(where) // 2), sharey=True).flat
        for axes, (name, measure) in zip(every, where, strict=False):
            pairs = results["tasks"][name]["pairs"]
            for (kind, memories), look in zip(kinds.items(), looks(len(kinds)), strict=True):
                tops = [best(memories, name, measure, i) for i in range(len(pairs))]
                found = [errors(top, name, measure, i) for i, top in enumerate(tops)]
                band(axes, pairs, list(zip(*found, strict=True)), kind, look)
            _frame(axes, results, name, f"{name}, {measure} keys", 1.3)
        legend(figure, figure.axes[0])

    return render("best", "Recall error by number of pairs, the best memory of each kind", draw, 5.6)


def _every(results: Results, task: str) -> str:
    """A row a network, a column an objective, a line a rule: means of stored keys."""
    networks, pairs = _networks(results), results["tasks"][task]["pairs"]
    shown = [memory for memory in chosen(results, size=1) if memory["network"] in networks]
    objectives = list(dict.fromkeys(memory["objective"] for memory in shown))
    rules = list(dict.fromkeys(memory["rule"] for memory in shown))
    look = dict(zip(rules, looks(len(rules)), strict=True))

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(networks), len(objectives), sharex=True, sharey=True, squeeze=False)
        for memory in shown:
            axes = panels[networks.index(memory["network"]), objectives.index(memory["objective"])]
            means, (colour, line, _) = (
                [fmean(errors(memory, task, "stored", i)) for i in range(len(pairs))],
                look[memory["rule"]],
            )
            axes.plot(pairs, means, color=colour, linestyle=line, linewidth=1.1, label=label(memory["rule"]))
        for row, network in zip(panels, networks, strict=True):
            for axes, objective in zip(row, objectives, strict=True):
                _frame(axes, results, task, f"{network}; {objective}", 1.6)
                axes.grid(False)
        handles = {
            text: line for axes in figure.axes for line, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles, loc="outside upper left", ncols=5, handlelength=2.6)

    title = f"Recall error of stored keys by number of pairs, {results['tasks'][task]['title']}"
    return render(f"every-{task}", title, draw, 0.6 + 1.35 * len(networks)) if networks else ""


def _frame(axes: Axes, results: Results, task: str, title: str, top: float) -> None:
    """The number of pairs that is as many as keys are wide is marked."""
    pairs = results["tasks"][task]["pairs"]
    axes.set_xscale("log", base=2)
    axes.set_xticks(pairs[::2], [f"{n}" for n in pairs[::2]])
    axes.minorticks_off()
    axes.set_ylim(0, top)
    axes.set_title(title, loc="left", fontsize=8)
    axes.axvline(results["dim"], color=MUTED, linestyle=":", linewidth=0.8)
