"""What `nestling eval ablation` measured: bits a byte of every row, beside the signs of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rich.console import Group

from nestling.report import sections
from nestling.report.sections import page, section, table
from nestling.report.values import NOTHING, number, summary

HEADINGS = ("row", "bits a byte", "less the whole", "paper", "tokens a second", "measured", "parameters")
TITLE = "Byte-level language models on WikiText-2"
NOTE = (
    "The whole: DGD, momentum, decay, two levels of MLPs, chunks of 64 read at every token, targets of each memory's own, a "
    "static q. Validation text, {tokens:,} bytes learnt, mean ± standard deviation over {seeds} seeds; the difference is taken "
    "seed by seed, and a rise says that the part helps. Paper: change of perplexity in Table 6 of arXiv 2512.24695, at another "
    "size and on other text: its sign is what compares. Tokens a second of the processor, one thread, which "
    "other work on the machine slows: they compare within a day."
)


def rows(results: dict[str, Any]) -> list[list[str]]:
    """A line for each row."""
    whole = [run["bits"] for run in results["rows"].get("full", {"runs": []})["runs"]]
    return [_row(name, met, whole) for name, met in results["rows"].items()]


def _row(name: str, met: dict[str, Any], whole: Sequence[float]) -> list[str]:
    runs = met["runs"]
    bits = [run["bits"] for run in runs]
    apart = [one - other for one, other in zip(bits, whole, strict=True)] if whole and name != "full" else []
    paper = NOTHING if met["sign"] is None else number(met["sign"], "+.2f")
    speed = fmean(run["tokens"] / run["seconds"] for run in runs)
    return [
        name,
        summary(bits),
        summary(apart, "+.3f"),
        paper,
        f"{speed:,.0f}",
        days(runs),
        f"{runs[0]['parameters']:,}",
    ]


def days(runs: Sequence[dict[str, Any]]) -> str:
    """The days on which they ran."""
    return ", ".join(sorted({run["day"] for run in runs}))


def note(results: dict[str, Any]) -> str:
    """How the figures came to be."""
    runs = next(iter(results["rows"].values()))["runs"]
    return NOTE.format(tokens=runs[0]["tokens"], seeds=len(runs))


def tables(results: dict[str, Any]) -> Group:
    """The table."""
    return Group(table(TITLE, HEADINGS, rows(results)))


def markdown(results: dict[str, Any]) -> str:
    """The table as a Markdown page."""
    return sections.markdown(results["title"], results["about"], [(TITLE, note(results), HEADINGS, rows(results))])


def html(results: dict[str, Any]) -> str:
    """The whole page."""
    return page(results["title"], results["about"], [section(TITLE, note(results), HEADINGS, rows(results))])
