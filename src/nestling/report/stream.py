"""What `nestling eval stream` measured: memory, speed, and whether a kill changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from rich.console import Group

from nestling.report import sections
from nestling.report.sections import page, section, table
from nestling.report.svg import label, render
from nestling.report.values import NOTHING, number, size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = list[dict[str, Any]]
Part = tuple[str, str, Sequence[str], list[list[str]]]

SETTLED = 100_000  # tokens after which memory is not to grow
MILLION = 1_000_000
NOTE = (
    "A Hope of {parameters:,} parameters, one block of self-modifying Titans and an MLP whose two levels move every {periods} tokens, "
    "reads bytes as one stream, in blocks of 8,192, and learns from all of them; a recall keeps its last {window:,} predictions. It was "
    "trained before, for some minutes, on English prose in which numbers return. War and Peace comes first, WikiText-2 after it; of "
    "{tokens:,} bytes {read:,} were read. A checkpoint is written about every {every:,}; each process but the last one was killed by "
    "SIGKILL, and the next one went on from the file."
)
MEMORY_NOTE = (
    "Resident: of the process, right after a checkpoint. Peak: the most at any moment since the process began, what Python and torch take "
    "included. Both at the first checkpoint after {settled:,} tokens, and the largest of any process later."
)


def tables(results: dict[str, Any]) -> Group:
    """Four tables."""
    return Group(*(table(title, headings, rows) for title, _, headings, rows in parts(results)))


def markdown(results: dict[str, Any]) -> str:
    """All tables as one Markdown page."""
    return sections.markdown(results["title"], results["about"], parts(results))


def html(results: dict[str, Any]) -> str:
    """The whole page; needs matplotlib."""
    drawings = (None, _curves(results["stream"]), None, None)
    drawn = [section(*part, drawing) for part, drawing in zip(parts(results), drawings, strict=True)]
    return page(results["title"], results["about"], drawn)


def parts(results: dict[str, Any]) -> list[Part]:
    """Of each table a title, how the figures came to be, headings and rows."""
    periods = " and ".join(f"{period:,}" for period in results["periods"])
    given = {name: results[name] for name in ("parameters", "tokens", "every", "window")}
    note = NOTE.format(periods=periods, read=results["stream"][-1]["position"], **given)
    return [
        ("The reading", note, ("", "tokens a second", "of the processor"), speeds(results["stream"])),
        (
            "Memory",
            MEMORY_NOTE.format(settled=SETTLED),
            ("", f"after {SETTLED:,}", "most later", "growth"),
            memory(results["stream"]),
        ),
        (
            "Kills",
            "The state - levels, memories, the unfinished period and the next token's logits - as SHA-256 after every checkpoint, against "
            "a reading of the beginning by one process that nobody killed.",
            ("", ""),
            kills(results),
        ),
        (
            "Needles",
            "Sentences that tell a number, of names that training did not have, written over the text so many bytes before the end of what "
            "is to be read; when all was read each is asked for, and five characters are said greedily, the recall having this share of "
            "what is said, at most. With 0 it is not asked: the levels and memories alone.",
            (
                "needle",
                "bytes before the end",
                "number",
                *(f"said, share {share}" for needle in results["needles"][:1] for share in needle["said"]),
            ),
            [
                [n["name"], f"{n['distance']:,}", n["number"], *map(repr, n["said"].values())]
                for n in results["needles"]
            ],
        ),
    ]


def speeds(found: Lines) -> list[list[str]]:
    """By the clock and by the processor's time, of the first and last million and of all."""
    last = found[-1]["position"]
    spans = {"the first million": (0, MILLION), "the last million": (last - MILLION, last), f"all {last:,}": (0, last)}
    rows = [
        [name, *(f"{rate(found, span, by):,.0f}" for by in ("seconds", "processor"))] for name, span in spans.items()
    ]
    ratios = [
        rate(found, spans["the last million"], by) / rate(found, spans["the first million"], by)
        for by in ("seconds", "processor")
    ]
    hours = [sum(line[by] for line in ends(found)) / 3600 for by in ("seconds", "processor")]
    return [
        *rows,
        ["last against first", *(f"{ratio:.2f}" for ratio in ratios)],
        ["hours", *(f"{h:.2f}" for h in hours)],
    ]


def rate(found: Lines, span: tuple[int, int], by: str) -> float:
    """Tokens a second between two positions, of stretches between two checkpoints of one process."""
    start, end = span
    stretches = [
        (after["position"] - before["position"], after[by] - before[by])
        for before, after in pairwise(found)
        if before["process"] == after["process"] and start <= before["position"] and after["position"] <= end
    ]
    tokens, seconds = (sum(values) for values in zip(*stretches, strict=True)) if stretches else (0, 0.0)
    return tokens / seconds if seconds else float("nan")


def ends(found: Lines) -> Lines:
    """The last line of every process."""
    return [
        line for line, after in zip(found, [*found[1:], {}], strict=True) if line["process"] != after.get("process")
    ]


def memory(found: Lines) -> list[list[str]]:
    """Resident and peak memory, early and later."""
    settled = [line for line in found if line["position"] >= SETTLED and not line.get("begins")]
    if not settled:
        return []
    rows = []
    for name in ("resident", "peak"):
        early, most = settled[0][name], max(line[name] for line in settled)
        rows.append([name, size(early), size(most), f"{number(100 * (most / early - 1), '+.1f')} %"])
    return rows


def kills(results: dict[str, Any]) -> list[list[str]]:
    """Where processes began, and at how many checkpoints the two readings are the same."""
    begun = [line["position"] for line in results["stream"] if line.get("begins")]
    digests = [
        {line["position"]: line["digest"] for line in results[name] if "digest" in line}
        for name in ("stream", "prefix")
    ]
    both = sorted(digests[0].keys() & digests[1].keys())
    alike = sum(digests[0][place] == digests[1][place] for place in both)
    within = sum(0 < place <= max(both, default=0) for place in begun)
    return [
        ["processes", str(len(begun))],
        ["went on after", ", ".join(f"{place:,}" for place in begun[1:]) or NOTHING],
        [
            "checkpoints compared",
            f"{len(both)}, to {max(both, default=0):,} tokens, {within} kill{'s' * (within != 1)} before the last",
        ],
        ["of them the same, bit for bit", str(alike)],
    ]


def _curves(found: Lines) -> str:
    """Memory against position."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        read = [line for line in found if not line.get("begins")]
        for name in ("resident", "peak"):
            axes.plot([line["position"] for line in read], [line[name] / 1e6 for line in read], label=label(name))
        axes.set(xlabel="tokens", ylabel="MB", ylim=(0, None))
        axes.legend()

    return render("memory", "Resident and peak memory against the tokens read", draw, 3.0)
