"""What an evaluation measured, as one offline HTML page and as tables for the terminal: a table and a figure a question."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from rich import box
from rich.table import Table

from nestling.report.page import PAGE
from nestling.report.style import CSS


def page(title: str, about: str, sections: Sequence[str]) -> str:
    """The whole page."""
    head = f"<header><h1>{escape(title)}</h1><p class='note'>{escape(about)}</p></header>"
    return PAGE.substitute(title=escape(title), css=CSS, body="\n".join([head, *sections]))


def section(title: str, note: str, headings: Sequence[str], rows: list[list[str]], figure: str | None = None) -> str:
    """A part of the page: what the question is, how the figures came to be, a table, and a drawing below it."""
    cells = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(c)}</td>" for c in row[1:])}</tr>'
        for row in rows
    )
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in headings)
    body = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
    heading = f"<h2>{escape(title)}</h2><p class='note'>{escape(note)}</p>"
    drawing = f"<figure><div class='scroll'>{figure}</div></figure>" if figure else ""
    return f"<section>{heading}{body}{drawing}</section>"


def markdown(title: str, about: str, parts: Iterable[tuple[str, str, Sequence[str], list[list[str]]]]) -> str:
    """The page as Markdown, without drawings; each part is a title, a note, headings and rows."""
    out = [f"# {title}", about]
    for heading, note, headings, rows in parts:
        lines = [headings, ["---"] * len(headings), *rows]
        out += [f"## {heading}", note, "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(out).replace("*", "\\*") + "\n"


def table(title: str, headings: Sequence[str], rows: list[list[str]]) -> Table:
    """The same table for the terminal."""
    drawn = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for heading in headings:
        drawn.add_column(heading, justify="left" if heading == headings[0] else "right")
    for row in rows:
        drawn.add_row(*row)
    return drawn
