"""What `nestling eval adaptation` measured: stream against old domain, and what each method costs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Group

from nestling.report import sections
from nestling.report.curves import legend, looks
from nestling.report.sections import page, section, table
from nestling.report.svg import MUTED, label, render
from nestling.report.values import NOTHING, finite, mean, percent, size, summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Runs = list[dict[str, Any]]
Part = tuple[str, str, tuple[str, ...], list[list[str]]]

READ = ("method", "setting", "A", "B", "B, last quarter", "A again", "its first quarter", "back after")
KEPT = ("method", "old, %", "as it stands, %", "later B", "after A again", "bytes a user", "s")
MATCHED = ("method", "setting", "B", "old, %", "ours", "setting", "B", "old, %", "share")
EVERY = ("method", "setting", "B", "B, last quarter", "old, %", "later B")
EVERY_NOTE = "The frontier: the stream against the old prose, at every setting that was run."
READ_NOTE = (
    "Prose like the training text (A, {a:,} bytes), then Python source (B, {b:,}), then prose (A again, {again:,}), read once; "
    "each stretch in bits a byte, every byte predicted before it is learnt; mean ± standard deviation over {seeds} seeds. Each "
    "method stands at the setting with the fewest bits of B (* its step is the first or last one tried). Its first quarter: "
    "of A again, less the frozen model's. Back after: bytes of A again until it is read at most 1% worse than by the frozen "
    "model. A recall keeps the last predictions as they were, and is mixed into what the stream is judged by. Below, every setting; "
    "the line goes through those that no other of the method beats on both axes."
)
KEPT_NOTE = (
    "The same settings. Old: change on held-out prose from before the stream to after B. Later B: bits a byte of Python that is "
    "not in the stream, after B and after A again. All after the end of the context, which levels that reset with it do, "
    "unless as it stands; by the weights alone, without recall. Bytes a user: what is kept for each, a recall included, the model's "
    "session apart. s: of the processor, to read and to learn, one thread."
)
MATCHED_NOTE = (
    "Each baseline at its setting with the fewest bits of B, beside that of our settings which reads B as well or better and "
    "forgets least of A; share: our change on the old prose over its own, where its own is a loss. – where none of our settings "
    "reads B as well."
)


def tables(results: dict[str, Any]) -> Group:
    """Three tables an architecture."""
    return Group(*(table(title, columns, rows) for title, _, columns, rows in parts(results)))


def parts(results: dict[str, Any]) -> list[Part]:
    """Title, note, columns and lines of three tables an architecture, and of all that was run."""
    found: list[Part] = []
    for name, methods in results["architectures"].items():
        found += [
            (f"{name}: the stream, bits a byte", note(methods), READ, read(methods)),
            (f"{name}: what is kept, and what it costs", KEPT_NOTE, KEPT, kept(methods)),
            (f"{name}: at equal loss of the stream", MATCHED_NOTE, MATCHED, matched(methods, results["ours"])),
        ]
    return found


def markdown(results: dict[str, Any]) -> str:
    """The tables, and every setting of every method."""
    swept = [
        (f"{name}: every setting", EVERY_NOTE, EVERY, every(methods))
        for name, methods in results["architectures"].items()
    ]
    return sections.markdown(results["title"], results["about"], [*parts(results), *swept])


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawn = []
    for name, methods in results["architectures"].items():
        drawn += [_frontier(name, methods), "", _stream(name, methods)]
    body = [section(*part, figure) for part, figure in zip(parts(results), drawn, strict=True)]
    return page(results["title"], results["about"], body)


def every(methods: dict[str, Any]) -> list[list[str]]:
    """A line for each setting: the frontier in numbers."""
    return [
        [
            name,
            setting(met),
            summary(stream(met["runs"])),
            summary([run["stretches"]["B"]["last_quarter"] for run in met["runs"]]),
            summary(forgetting(met["runs"]), "+.1f"),
            summary([run["judged"]["B"]["later"] for run in met["runs"]]),
        ]
        for name, swept in methods.items()
        for met in swept
    ]


def note(methods: dict[str, Any]) -> str:
    """How the figures came to be."""
    runs = next(iter(methods.values()))[0]["runs"]
    a, b, again = (met["tokens"][-1] for met in runs[0]["stretches"].values())
    return READ_NOTE.format(a=a, b=b, again=again, seeds=len(runs))


def read(methods: dict[str, Any]) -> list[list[str]]:
    """A line for each method: how it read."""
    frozen = methods["frozen"][0]["runs"] if "frozen" in methods else None
    return [_read(name, swept, frozen) for name, swept in methods.items()]


def kept(methods: dict[str, Any]) -> list[list[str]]:
    """A line for each method: what it forgot, what it kept, what it cost."""
    return [_kept(name, best(swept)["runs"]) for name, swept in methods.items()]


def matched(methods: dict[str, Any], ours: Sequence[str]) -> list[list[str]]:
    """A line for each baseline that learns."""
    mine = [(name, met) for name in ours for met in methods.get(name, [])]
    baselines = {name: best(swept) for name, swept in methods.items() if name not in (*ours, "frozen")}
    return [_matched(name, met, mine) for name, met in baselines.items()]


def best(swept: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the fewest bits of B: chosen on the stream itself, in each method's favour."""
    return min(swept, key=lambda met: _last_where_not_finite(stream(met["runs"])))


def stream(runs: Runs) -> list[float]:
    """Bits a byte of B, by seed."""
    return [run["stretches"]["B"]["bits"] for run in runs]


def forgetting(runs: Runs, which: str = "old") -> list[float]:
    """Change on the old prose from before the stream to after B, in %, by seed."""
    return percent([run["judged"]["B"][which] for run in runs], [run["judged"][""][which] for run in runs])


def setting(met: dict[str, Any]) -> str:
    """In words."""
    return ", ".join(f"{name} {value:g}" for name, value in met["setting"].items()) or NOTHING


def efficient(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other is at most equal to on both axes, from left to right."""
    found: list[tuple[float, float]] = []
    for point in sorted(points):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def _read(name: str, swept: Sequence[dict[str, Any]], frozen: Runs | None) -> list[str]:
    met = best(swept)
    runs = met["runs"]
    met_a, met_b, met_again = ([run["stretches"][part] for run in runs] for part in ("A", "B", "A again"))
    return [
        name,
        setting(met) + ("*" if _edge(met, swept) else ""),
        *(summary([found["bits"] for found in part]) for part in (met_a, met_b)),
        summary([found["last_quarter"] for found in met_b]),
        summary([found["bits"] for found in met_again]),
        summary(_return(runs, frozen), "+.3f") if frozen else NOTHING,
        _back(runs, frozen) if frozen else NOTHING,
    ]


def _kept(name: str, runs: Runs) -> list[str]:
    return [
        name,
        summary(forgetting(runs), "+.1f"),
        summary(forgetting(runs, "old, as it stands"), "+.1f"),
        *(summary([run["judged"][moment]["later"] for run in runs]) for moment in ("B", "A again")),
        size(runs[0]["bytes"]),
        summary([run["seconds"] for run in runs], ",.0f"),
    ]


def _matched(name: str, met: dict[str, Any], mine: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    limit, loss = mean(stream(met["runs"])), mean(forgetting(met["runs"]))
    row = [name, setting(met), summary(stream(met["runs"])), summary(forgetting(met["runs"]), "+.1f")]
    as_well = [(other, one) for other, one in mine if mean(stream(one["runs"])) <= limit]
    if not as_well:
        return row + [NOTHING] * 5
    other, one = min(as_well, key=lambda pair: _last_where_not_finite(forgetting(pair[1]["runs"])))
    share = f"{mean(forgetting(one['runs'])) / loss:.2f}" if loss > 0 else NOTHING
    return [*row, other, setting(one), summary(stream(one["runs"])), summary(forgetting(one["runs"]), "+.1f"), share]


def _last_where_not_finite(values: list[float]) -> float:
    """The mean, or infinity where a seed failed, so that a diverged run is never the best."""
    return mean(values) if len(finite(values)) == len(values) else float("inf")


def _edge(met: dict[str, Any], swept: Sequence[dict[str, Any]]) -> bool:
    """Whether the step, the first value of a setting, is the first or the last one tried."""
    steps = [next(iter(other["setting"].values()), None) for other in swept]
    step = next(iter(met["setting"].values()), None)
    return len(swept) > 1 and step in (steps[0], steps[-1])


def _return(runs: Runs, frozen: Runs) -> list[float]:
    """Bits a byte of the first quarter of A again, less the frozen model's."""
    return [fmean(one) - fmean(other) for one, other in _pairs(runs, frozen, share=4)]


def _back(runs: Runs, frozen: Runs) -> str:
    """Bytes until a stretch of A again is read at most 1% worse than by the frozen model; the median's upper neighbour."""
    at = runs[0]["stretches"]["A again"]["tokens"]
    ends = sorted(
        next((end for end, one, other in zip(at, *pair, strict=True) if one <= 1.01 * other), at[-1] + 1)
        for pair in _pairs(runs, frozen)
    )
    end = ends[len(ends) // 2]
    return f"{end:,}" if end <= at[-1] else "never"


def _pairs(runs: Runs, frozen: Runs, share: int = 1) -> list[tuple[list[float], list[float]]]:
    """The curves of A again, by seed: a run's, and the frozen model's; the first of `share` parts."""
    curves = [[run["stretches"]["A again"]["bpb"] for run in which] for which in (runs, frozen)]
    return [
        (one[: -(-len(one) // share)], other[: -(-len(other) // share)]) for one, other in zip(*curves, strict=True)
    ]


def _frontier(architecture: str, methods: dict[str, Any]) -> str:
    """B against the old prose after it: a dot a setting, a line through those that no other of the method beats on both."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (name, swept), look in zip(methods.items(), looks(len(methods)), strict=True):
            points = [
                (mean(stream(met["runs"])), mean([run["judged"]["B"]["old"] for run in met["runs"]])) for met in swept
            ]
            points = [point for point in points if len(finite(point)) == 2]
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), look.marker, color=look.colour, markersize=4, alpha=0.4)
            axes.plot(
                *zip(*efficient(points), strict=True),
                marker=look.marker, color=look.colour, linestyle=look.line, label=label(name),
            )  # fmt: skip
        axes.set(xlabel="stream: bits a byte of B", ylabel="old prose after B: bits a byte")
        axes.text(0.99, 0.97, "↙ better", transform=axes.transAxes, color=MUTED, ha="right", va="top")
        legend(figure, axes)

    return render(_plain(f"frontier {architecture}"), f"{architecture}: the stream against the old domain", draw, 5.0)


def _stream(architecture: str, methods: dict[str, Any]) -> str:
    """Bits along the stream, each method at its best setting, the mean over seeds."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for (name, swept), look in zip(methods.items(), looks(len(methods)), strict=True):
            runs, begun = best(swept)["runs"], 0
            at, means = [], []
            for stretch, met in runs[0]["stretches"].items():
                at += [begun + end for end in met["tokens"]]
                seeds = (run["stretches"][stretch]["bpb"] for run in runs)
                means += [fmean(values) for values in zip(*seeds, strict=True)]
                begun += met["tokens"][-1]
            axes.plot(at, means, color=look.colour, linestyle=look.line, linewidth=1.2, label=label(name))
        axes.set(xlabel="bytes of the stream: A, B, A again", ylabel="bits a byte")
        legend(figure, axes)

    return render(_plain(f"stream {architecture}"), f"{architecture}: bits along the stream", draw, 4.4)


def _plain(name: str) -> str:
    """A name that an id can have."""
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")
