"""The figures of the report: each function draws one, as SVG, or returns "" when its results were not measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nestling.report import content, curves
from nestling.report.schema import Results
from nestling.report.svg import INK, MUTED, label, render
from nestling.report.values import finite, mean, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def stream(results: Results) -> str:
    """Bits per byte of each chunk of the stream, before it is learnt."""
    pairs = zip(results["learners"], curves.learner_looks(results), strict=True)
    drawn = [(learner["name"], learner["stream"], look) for learner, look in pairs if learner.get("stream")]
    title = "Bits per byte along the stream, for each learner"
    return _curves("stream", title, "bits per byte", "tokens of the stream read", drawn)


def gain(results: Results) -> str:
    """The stream again, as the difference to the same model frozen: how hard each passage is cancels out."""
    drawn = []
    for learner, look in zip(results["learners"], curves.learner_looks(results), strict=True):
        frozen = content.frozen_twin(results, learner)
        if frozen and frozen.get("stream") and learner.get("stream"):
            drawn.append((learner["name"], curves.difference(learner["stream"], frozen["stream"]), look))
    title = "Difference to the frozen model in bits per byte along the stream, for each learner"
    return _curves("gain", title, "bits per byte less the frozen model’s", "tokens of the stream read", drawn)


def training(results: Results) -> str:
    """Bits per byte while the models were trained on the old domain."""
    models = [model for model in results["models"] if model.get("curve")]
    pairs = zip(models, curves.looks(len(models)), strict=True)
    drawn = [(model["name"], model["curve"], look) for model, look in pairs]
    title = "Bits per byte during training on the old domain, for each model"
    return _curves("training", title, "bits per byte", "training tokens", drawn)


def _curves(name: str, title: str, height: str, along: str, drawn: list[tuple[str, Results, curves.Look]]) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for line, curve, look in drawn:
            curves.band(axes, curve["tokens"], curve["bpb"], line, look)
        curves.token_axis(axes, along + curves.averaged([len(curve["tokens"]) for _, curve, _ in drawn]))
        axes.set_ylabel(height)
        curves.legend(figure, axes)

    return render(name, title, draw) if drawn else ""


def forgetting(results: Results) -> str:
    """How much worse each learner became on the old domain, in %: the bar is the mean, the ticks are the seeds."""
    learners = results["learners"]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, look in enumerate(curves.learner_looks(results)):
            _bar(axes, place, content.forgetting(learners[place]), look)
        axes.set_yticks(range(len(learners)), [label(learner["name"]) for learner in learners])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.axvline(0.0, color=MUTED, linewidth=0.8)
        axes.margins(x=0.2)
        axes.set_xlabel("change in bits per byte of the old domain, % (to the right is worse)")

    title = "Change on the old domain after the stream, for each learner"
    return render("forgetting", title, draw, 0.8 + 0.36 * len(learners)) if learners else ""


def _bar(axes: Axes, place: int, change: list[float], look: curves.Look) -> None:
    seeds = finite(change)
    if len(seeds) == len(change):
        axes.barh(place, mean(change), height=0.55, color=look.colour, alpha=0.8)
    if len(seeds) > 1:
        axes.plot(seeds, [place] * len(seeds), "|", color=INK, markersize=9, markeredgewidth=1.2)
    text = summary(change, "+.1f") + " %"
    axes.annotate(text, (max([0.0, *seeds]), place), (6, 0), textcoords="offset points", va="center")


def frontier(results: Results) -> str:
    """New domain against old: a line through every sweep of steps, a marker for every learner."""
    sweeps = [sweep for sweep in results.get("frontier") or [] if sweep["points"]]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, sweep in enumerate(sweeps):
            _sweep(axes, sweep, _sweep_look(results, sweep["name"], place))
        for learner, look in zip(results["learners"], curves.learner_looks(results), strict=True):
            at = mean(learner["last_quarter_bpb"]), mean(learner["old_after_bpb"])
            axes.plot(*at, look.marker, color=look.colour, markersize=9, label=label(learner["name"]), zorder=3)
        _frame(axes, results, sweeps)
        axes.set_xlabel("new domain: bits per byte in the last quarter of the stream")
        axes.set_ylabel("old domain afterwards: bits per byte")
        curves.legend(figure, axes)

    return render("frontier", "New domain against old domain, for each learner", draw, 4.4) if sweeps else ""


def _sweep(axes: Axes, sweep: Results, look: curves.Look) -> None:
    points = [point for point in sweep["points"] if len(finite([point["new_bpb"], point["old_bpb"]])) == 2]
    new, old = [point["new_bpb"] for point in points], [point["old_bpb"] for point in points]
    text = f"{label(sweep['name'])}, sweep of steps"
    axes.plot(new, old, linestyle=look.line, marker=".", color=look.colour, linewidth=1.2, label=text)
    for point in points:
        at = point["new_bpb"], point["old_bpb"]
        note = axes.annotate(f"{point['step']:g}", at, (5, 4), textcoords="offset points", fontsize=8, color=MUTED)
        note.set_annotation_clip(True)


def _sweep_look(results: Results, name: str, place: int) -> curves.Look:
    """A sweep looks like the learner it belongs to, found by the learner's name or its kind; grey if there is none."""
    for learner, look in zip(results["learners"], curves.learner_looks(results), strict=True):
        if name.lower() in (learner["name"].lower(), learner["kind"]):
            return look
    return curves.Look(MUTED, curves.LINES[place % len(curves.LINES)])


def _frame(axes: Axes, results: Results, sweeps: list[Results]) -> None:
    """Keep the learners in view: a sweep's wildest steps may lie far outside, and are counted instead."""
    learners = [(mean(one["last_quarter_bpb"]), mean(one["old_after_bpb"])) for one in results["learners"]]
    learners = [point for point in learners if len(finite(point)) == 2]
    steps = [(point["new_bpb"], point["old_bpb"]) for sweep in sweeps for point in sweep["points"]]
    inside = [point for point in steps if len(finite(point)) == 2 and _near(point, learners)]
    for limit, values in zip((axes.set_xlim, axes.set_ylim), zip(*learners, *inside, strict=True), strict=False):
        margin = 0.08 * max(max(values) - min(values), 0.05)
        limit(min(values) - margin, max(values) + margin)
    outside = len(steps) - len(inside)
    note = f" (outside the view: {outside} of the sweeps’ {len(steps)} steps)" if outside else ""
    axes.text(0.99, 0.97, "↙ better" + note, transform=axes.transAxes, color=MUTED, ha="right", va="top")


def _near(point: tuple[float, float], learners: list[tuple[float, float]]) -> bool:
    """No further out, on either axis, than twice the learners' own span beyond the worst of them."""
    for value, known in zip(point, zip(*learners, strict=True), strict=False):
        if value > max(known) + max(2 * (max(known) - min(known)), 0.25):
            return False
    return True


def updates(results: Results) -> str:
    """How far each update moved its level: one panel per learner that reports it, one curve per level."""
    learners = [learner for learner in results["learners"] if learner.get("updates") and learner.get("stream")]

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(learners), 1, sharex=True, squeeze=False)[:, 0]
        for axes, learner in zip(panels, learners, strict=True):
            _levels(axes, learner)
        lengths = [len(norms[0]) for learner in learners for norms in learner["updates"].values()]
        curves.token_axis(panels[-1], "tokens of the stream read" + curves.averaged(lengths))

    title = "Size of the updates of each level along the stream"
    return render("updates", title, draw, 0.8 + 2.2 * len(learners)) if learners else ""


def _levels(axes: Axes, learner: Results) -> None:
    """Updates of one level are spread evenly over the stream, which is what a level's period means."""
    from matplotlib.ticker import LogLocator

    end = max(learner["stream"]["tokens"], default=0)
    looks = curves.looks(len(learner["updates"]))
    for (level, norms), look in zip(learner["updates"].items(), looks, strict=True):
        count = len(norms[0])
        tokens = [end * (index + 1) / count for index in range(count)]
        positive = [[norm if norm and norm > 0 else math.nan for norm in seed] for seed in norms]
        curves.band(axes, tokens, positive, level if count else f"{level}: no update", look)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("norm of the update")
    axes.set_title(label(learner["name"]), loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
